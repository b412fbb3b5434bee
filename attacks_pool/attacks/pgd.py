"""PGD in the linf ball."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.engine import gradient_ascent
from attacks_pool.losses import LOSSES
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register

KNOBS = {
    "steps": metadata.steps(50, training=7),
    "step_size": metadata.step_size(2.5),
    "restarts": metadata.restarts(),
    "random_start": Knob(True, "start at a random point of the ball"),
    "loss": Knob("ce", "what is maximised", choices=tuple(LOSSES)),
}
"""The knobs of projected gradient descent in any norm."""


@register(
    AttackInfo(
        name="pgd",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="1706.06083",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs=KNOBS,
    )
)
def pgd(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Projected gradient descent, linf: x_{k+1} = Π(x_k + step_size · sign ∇ CE(f(x_k), y)), random start.

    Madry et al., arXiv:1706.06083. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="linf", **knobs)
