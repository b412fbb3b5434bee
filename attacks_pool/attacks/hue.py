"""Hue: every colour of an image turned by one angle."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import rendering, worst_case
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="hue",
        family="colour",
        norm=None,
        access="white-box",
        paper="2202.04235",
        channels=(3,),
        cost=worst_case.magnitude_cost,
        knobs={
            "eps": Knob(
                0.5, "largest turn, as a share of the colour circle", high=0.5, open_low=True, scales=True
            ),
            **worst_case.MAGNITUDE_KNOBS,
        },
    )
)
def hue(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Adversarial hue: x_adv = HSV(h + p, s, v), |p| ≤ eps, p found for each image.

    The hue of composite attacks (Hsiung et al., arXiv:2202.04235), alone; eps 0.5 is the whole circle, as
    there. Greys have no hue and stay. Needs three channels. Search: a grid, then the gradient, see
    :func:`attacks_pool.worst_case.worst_magnitude`. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, rendering.turn_hue, **knobs)
