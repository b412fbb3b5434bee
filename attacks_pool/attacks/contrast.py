"""Contrast: pixels drawn towards their mean, or away from it."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import rendering, worst_case
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="contrast",
        family="colour",
        norm=None,
        access="white-box",
        paper="2202.04235",
        cost=worst_case.magnitude_cost,
        knobs={
            "eps": Knob(0.3, "largest change of the factor", high=1.0, open_low=True, scales=True),
            **worst_case.MAGNITUDE_KNOBS,
        },
    )
)
def contrast(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Adversarial contrast: x_adv = clip(m + (1 + p) · (x − m)), |p| ≤ eps, m the image's mean brightness.

    The range of composite attacks (Hsiung et al., arXiv:2202.04235), alone; about the mean, where they scale
    about black. Search: a grid, then the gradient, see
    :func:`attacks_pool.worst_case.worst_magnitude`. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, rendering.change_contrast, **knobs)
