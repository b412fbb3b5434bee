"""Brightness: one value added to every pixel."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import rendering, worst_case
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="brightness",
        family="colour",
        norm=None,
        access="white-box",
        paper="2202.04235",
        cost=worst_case.magnitude_cost,
        knobs={
            "eps": Knob(0.2, "largest value added", high=1.0, open_low=True, scales=True),
            **worst_case.MAGNITUDE_KNOBS,
        },
    )
)
def brightness(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Adversarial brightness: x_adv = clip(x + p), |p| ≤ eps, p found for each image.

    The brightness of composite attacks (Hsiung et al., arXiv:2202.04235), alone. Search: a grid, then the
    gradient, see :func:`attacks_pool.worst_case.worst_magnitude`. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, rendering.change_brightness, **knobs)
