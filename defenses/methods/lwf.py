"""LwF: learning without forgetting."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.losses import log_probabilities
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, needs_attack, not_negative
from defenses.registry import register


@register
class LwF(Defense):
    """Learning without forgetting (Li and Hoiem, arXiv:1606.09282) of adversarial training.

    Stage 1 is adversarial training. Then, f_old a frozen copy from the end of the stage before, in eval mode,

        L = CE(f(x̃), y) + λ · KL(softmax f_old(x̃)/T ‖ softmax f(x̃)/T),

    x̃ the present adversarial examples, which go through f once. The paper writes the second term as a
    cross-entropy with the old outputs: the same gradient, and here 0 where nothing is forgotten; like the
    paper it is not multiplied by T². All stages share the classes and so the one output layer, where the
    paper has one a task: nothing is warmed up.

    Args:
        model: the classifier.
        weight: λ; 1 in the paper.
        temperature: T; 2 in the paper.
        seed: determines every draw.

    Raises:
        InputError: λ negative, T not above 0, or one that is not finite.
    """

    info = DefenseInfo(name="lwf", paper="1606.09282", regimes=("continual",))

    def __init__(
        self, model: nn.Module, *, weight: float = 1.0, temperature: float = 2.0, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(weight=weight)
        above_zero(temperature=temperature)
        self.weight, self.temperature = weight, temperature
        # In a tuple, so that it is neither a submodule nor among the weights.
        self._old: tuple[nn.Module, ...] = ()

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """One attack a stage.

        Raises:
            InputError: none, or several.
        """
        super().check_attacks(attacks)
        needs_attack(self.info.name, attacks)

    def begin(self, stage: Stage) -> None:
        """Freeze f_old: what f is now is what the stage before left."""
        if stage.index > 1:
            self._old = (copy.deepcopy(self.model).eval().requires_grad_(False),)

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Let f_old go; the next stage copies f again."""
        self._old = ()

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``distillation``, without λ."""
        return self.distilled(self.craft(stage.attacks[0], x, y), y)

    def distilled(self, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss of points that are crafted already."""
        logits = self(x_adv)
        ce = F.cross_entropy(logits, y)
        if not self._old:
            return {"loss": ce}
        with torch.no_grad():
            old = self._old[0](x_adv).to(logits.dtype)
        self.passes.forwards += len(x_adv)
        distillation = F.kl_div(
            log_probabilities(logits / self.temperature),
            log_probabilities(old / self.temperature),
            log_target=True,
            reduction="batchmean",
        )
        return {"loss": ce + self.weight * distillation, "ce": ce, "distillation": distillation}

    def training_state(self) -> dict[str, Any]:
        """Adds f_old, which exists while a stage from the second on trains."""
        old = [module.state_dict() for module in self._old]
        return {**super().training_state(), "old": old[0] if old else None}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Rebuilds f_old on the structure of the present model."""
        super().load_training_state(state)
        self._old = ()
        if state["old"] is not None:
            old = copy.deepcopy(self.model).eval().requires_grad_(False)
            old.load_state_dict(state["old"])
            self._old = (old,)
