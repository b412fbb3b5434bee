"""Targeted Auto-PGD: the second part of AutoAttack."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, targeted_ascent, targeted_cost

TARGETED = {
    **KNOBS,
    "targets": Knob(
        9, "number of likeliest wrong classes to aim at, or all if there are fewer", training=1, low=1
    ),
}
"""The knobs of the targeted search."""


@register(
    AttackInfo(
        name="apgd-t",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=targeted_cost("linf"),
        knobs=TARGETED,
    )
)
def apgd_t(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD towards each of the likeliest wrong classes, linf.

    The loss is the targeted difference of logits ratio, with a substitute below four classes
    (:func:`attacks_pool.losses.targeted_dlr`); the search is
    :func:`attacks_pool.search.auto_pgd.targeted_ascent`,
    arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return targeted_ascent(model, x, y, norm="linf", **knobs)


@register(
    AttackInfo(
        name="apgd-t-l2",
        family="projected-gradient",
        norm="l2",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=targeted_cost("l2"),
        knobs=TARGETED,
    )
)
def apgd_t_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD towards each of the likeliest wrong classes, l2.

    The loss is the targeted difference of logits ratio, with a substitute below four classes
    (:func:`attacks_pool.losses.targeted_dlr`); the search is
    :func:`attacks_pool.search.auto_pgd.targeted_ascent`,
    arXiv:2003.01690; it starts on the sphere. Shapes as in :class:`attacks_pool.Attack`.
    """
    return targeted_ascent(model, x, y, norm="l2", **knobs)


@register(
    AttackInfo(
        name="apgd-t-l1",
        family="projected-gradient",
        norm="l1",
        access="white-box",
        paper="2103.01208",
        reduced_precision=True,
        cost=targeted_cost("l1"),
        knobs=TARGETED,
    )
)
def apgd_t_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD towards each of the likeliest wrong classes, l1.

    The loss is the targeted difference of logits ratio, with a substitute below four classes
    (:func:`attacks_pool.losses.targeted_dlr`); the search is
    :func:`attacks_pool.search.auto_pgd.targeted_ascent`,
    arXiv:2103.01208: sparse steps, exact projection onto ball and box, and a ball that shrinks from 3·eps.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    return targeted_ascent(model, x, y, norm="l1", **knobs)
