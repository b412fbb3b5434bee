"""Colour attacks: the worst change of brightness, contrast, saturation or hue for each image."""

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

    The range is that of composite attacks (Hsiung et al., arXiv:2202.04235), which scale S of HSV; here the
    image is blended with grey instead. Needs three channels. Search: a grid, then gradient steps, see
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
    """Adversarial hue: x_adv = HSV(h + p, s, v), |p| ≤ eps, with the worst p for each image.

    The hue part of composite attacks (Hsiung et al., arXiv:2202.04235); as there, eps 0.5 is the whole
    circle. Grey pixels have no hue and stay. Needs three channels. Search: a grid, then gradient steps, see
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

    The range is that of composite attacks (Hsiung et al., arXiv:2202.04235), which scale about black; here
    contrast is scaled about the mean. Search: a grid, then gradient steps, see
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
            "eps": Knob(0.2, "largest amount added to the pixels", high=1.0, open_low=True, scales=True),
            **worst_case.MAGNITUDE_KNOBS,
        },
    )
)
def brightness(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Adversarial brightness: x_adv = clip(x + p), |p| ≤ eps, with the worst p for each image.

    The brightness part of composite attacks (Hsiung et al., arXiv:2202.04235). Search: a grid, then gradient
    steps, see :func:`attacks_pool.rendering.worst_case.worst_magnitude`. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return worst_case.worst_magnitude(model, x, y, transforms.change_brightness, **knobs)
