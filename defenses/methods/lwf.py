"""LwF: learning without forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attacks_pool.attack import Attack
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, because, not_negative, single_stage
from defenses.parts.frozen import OldModelDefense
from defenses.registry import register


@register
class LwF(OldModelDefense):
    """Learning without forgetting (Li and Hoiem, arXiv:1606.09282) of adversarial training.

    Stage 1 is adversarial training. Later stages use f_old, the previous stage's f, frozen and in eval mode:

        L = CE(f(x̃), y) + λ · KL(softmax f_old(x̃)/T ‖ softmax f(x̃)/T).

    x̃ are the current adversarial examples, with one forward pass of f. The paper writes the second term as a
    cross-entropy with the old outputs, which has the same gradient; the KL is 0 if nothing is forgotten. As
    in the paper, it is not multiplied by T². All stages share the classes and thus the output layer, while
    the paper has one layer per task and warms it up.

    Args:
        model: the classifier.
        weight: λ; 1 in the paper.
        temperature: T; 2 in the paper.
        seed: determines every random draw.

    Raises:
        InputError: λ is negative, T is not above 0, or one of them is not finite.
    """

    info = DefenseInfo(name="lwf", paper="1606.09282", regimes=("continual",))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self, model: nn.Module, *, weight: float = 1.0, temperature: float = 2.0, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(weight=weight)
        above_zero(temperature=temperature)
        self.weight, self.temperature = weight, temperature

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """The temperature with λ = 0; both parameters where there is one stage."""
        found = {} if self.weight else because("since weight=0 leaves out the distillation", "temperature")
        return {**found, **single_stage(stages, "weight", "temperature")}

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``distillation``, without λ."""
        return self.distilled(self.craft(stage.attacks[0], x, y), y)

    def distilled(self, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss for adversarial points that are already crafted."""
        logits = self(x_adv)
        ce = self.label_loss(logits, y)
        if not self._old:
            return {"loss": ce}
        distillation = self.divergence_from_old(x_adv, logits, self.temperature)
        return {"loss": ce + self.weight * distillation, "ce": ce, "distillation": distillation}
