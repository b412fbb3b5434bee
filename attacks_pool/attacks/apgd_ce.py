"""Auto-PGD on the cross-entropy: the first part of AutoAttack."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, adaptive_ascent, cost


@register(
    AttackInfo(
        name="apgd-ce",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=cost("linf"),
        knobs=KNOBS,
    )
)
def apgd_ce(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the cross-entropy, linf.

    The loss is −log softmax(z)_y; the search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", loss="ce", **knobs)


@register(
    AttackInfo(
        name="apgd-ce-l2",
        family="projected-gradient",
        norm="l2",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=cost("l2"),
        knobs=KNOBS,
    )
)
def apgd_ce_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the cross-entropy, l2.

    The loss is −log softmax(z)_y; the search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2003.01690; it starts on the sphere. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l2", loss="ce", **knobs)


@register(
    AttackInfo(
        name="apgd-ce-l1",
        family="projected-gradient",
        norm="l1",
        access="white-box",
        paper="2103.01208",
        reduced_precision=True,
        cost=cost("l1"),
        knobs=KNOBS,
    )
)
def apgd_ce_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the cross-entropy, l1.

    The loss is −log softmax(z)_y; the search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2103.01208: sparse steps, exact projection onto ball and box, and a ball that shrinks from 3·eps.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l1", loss="ce", **knobs)
