"""Adversarial training, sequential or joint."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attacks_pool.attack import Attack
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import nothing_to_mix
from defenses.parts.mixing import Mix, craft_batch
from defenses.registry import register


@register
class AT(Defense):
    """Adversarial training: L = CE(f(x̃), y), x̃ crafted on the current f (Madry et al., arXiv:1706.06083).

    In the continual regime this is sequential adversarial training, the lower bound of continual defense. In
    the joint regime (alias ``joint``), one stage trains against all attacks, which is its upper bound.

    Args:
        model: the classifier.
        mix: how a joint batch combines attacks; ``split`` (default) costs as much as one attack.
        seed: determines every random draw.
    """

    info = DefenseInfo(
        name="at", paper="1706.06083", regimes=("continual", "joint"), aliases={"joint": "joint"}
    )
    smooths_labels = True

    def __init__(self, model: nn.Module, *, mix: Mix = "split", seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        self.mix = mix

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """``mix`` where no stage has several attacks."""
        return nothing_to_mix(stages)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f(x̃), y)."""
        x_adv, y_adv = craft_batch(
            self.craft,
            stage.attacks,
            x,
            y,
            mix=self.mix,
            generator=self.generator,
            predict=self,
        )
        return self.label_loss(self(x_adv), y_adv)
