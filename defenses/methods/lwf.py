"""LwF: learning without forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, needs_attack, not_negative
from defenses.parts.frozen import OldModelDefense
from defenses.registry import register


@register
class LwF(OldModelDefense):
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

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """One attack a stage.

        Raises:
            InputError: none, or several.
        """
        super().check_attacks(attacks)
        needs_attack(self.info.name, attacks)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``distillation``, without λ."""
        return self.distilled(self.craft(stage.attacks[0], x, y), y)

    def distilled(self, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss of points that are crafted already."""
        logits = self(x_adv)
        ce = F.cross_entropy(logits, y)
        if not self._old:
            return {"loss": ce}
        distillation = self.divergence_from_old(x_adv, logits, self.temperature)
        return {"loss": ce + self.weight * distillation, "ce": ce, "distillation": distillation}
