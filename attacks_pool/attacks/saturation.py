"""Saturation: colours brought nearer to grey, or further from it."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import rendering, worst_case
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="saturation",
        family="colour",
        norm=None,
        access="white-box",
        paper="2202.04235",
        channels=(3,),
        cost=worst_case.magnitude_cost,
        knobs={
            "eps": Knob(0.3, "largest change of the factor", high=1.0, open_low=True, scales=True),
            **worst_case.MAGNITUDE_KNOBS,
        },
    )
)
def saturation(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Adversarial saturation: x_adv = clip(g + (1 + p) · (x − g)), |p| ≤ eps, g the grey of each pixel.

    The range of composite attacks (Hsiung et al., arXiv:2202.04235), alone; blended with grey, where they
    scale S of HSV. Needs three channels. Search: a grid, then the gradient, see
    :func:`attacks_pool.worst_case.worst_magnitude`. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, rendering.change_saturation, **knobs)
