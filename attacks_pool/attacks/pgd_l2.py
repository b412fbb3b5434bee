"""PGD in the l2 ball."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.attacks.pgd import KNOBS
from attacks_pool.engine import gradient_ascent
from attacks_pool.metadata import AttackInfo
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="pgd-l2",
        family="projected-gradient",
        norm="l2",
        access="white-box",
        paper="1706.06083",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs=KNOBS,
    )
)
def pgd_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Projected gradient descent, l2: x_{k+1} = Π(x_k + step_size · g/‖g‖₂), g = ∇ CE(f(x_k), y).

    Madry et al., arXiv:1706.06083. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="l2", **knobs)
