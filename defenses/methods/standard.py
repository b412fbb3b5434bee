"""Plain training, the control for adversarial training."""

from __future__ import annotations

from torch import Tensor

from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.registry import register


@register
class Standard(Defense):
    """Empirical risk minimisation on clean images: L = CE(f(x), y). The stage's attacks are not used."""

    info = DefenseInfo(name="standard", paper=None, regimes=("continual", "joint"))
    smooths_labels = True

    def knobs_in_use(self) -> tuple[str, ...] | None:
        """None at all: no attack is run."""
        return ()

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:  # noqa: ARG002 - attacks are not used
        """CE(f(x), y)."""
        return self.label_loss(self(x), y)
