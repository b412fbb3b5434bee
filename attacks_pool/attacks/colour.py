"""Colour attacks: brightness, contrast, saturation and hue, each found for every image."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.rendering import transforms, worst_case


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
    :func:`attacks_pool.rendering.worst_case.worst_magnitude`. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, transforms.change_saturation, **knobs)


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
    :func:`attacks_pool.rendering.worst_case.worst_magnitude`. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, transforms.turn_hue, **knobs)


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
    :func:`attacks_pool.rendering.worst_case.worst_magnitude`. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, transforms.change_contrast, **knobs)


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
    gradient, see :func:`attacks_pool.rendering.worst_case.worst_magnitude`. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, transforms.change_brightness, **knobs)
