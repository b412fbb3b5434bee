"""APGD: PGD whose step size adapts to progress."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.apgd import adaptive_ascent
from attacks_pool.losses import LOSSES
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="apgd",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="2003.01690",
        knobs={
            "steps": metadata.steps(100, training=10),
            "restarts": metadata.restarts(),
            "loss": Knob("ce", "what is maximised", choices=tuple(LOSSES)),
            "rho": Knob(0.75, "share of steps that must raise the loss between checkpoints", high=1.0),
        },
    )
)
def apgd(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD, linf: momentum, a step size that halves when progress stalls, return to the best point.

    Croce and Hein, arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", **knobs)
