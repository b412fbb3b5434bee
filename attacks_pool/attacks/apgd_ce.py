"""Auto-PGD on the cross-entropy: the first part of AutoAttack."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import projected_gradient
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, adaptive_ascent, cost


@register(projected_gradient("apgd-ce", "linf", "2003.01690", KNOBS, cost("linf")))
def apgd_ce(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the cross-entropy, linf.

    The loss is −log softmax(z)_y; the search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", loss="ce", **knobs)


@register(projected_gradient("apgd-ce-l2", "l2", "2003.01690", KNOBS, cost("l2")))
def apgd_ce_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the cross-entropy, l2.

    The loss is −log softmax(z)_y; the search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2003.01690; it starts on the sphere. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l2", loss="ce", **knobs)


@register(projected_gradient("apgd-ce-l1", "l1", "2103.01208", KNOBS, cost("l1")))
def apgd_ce_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the cross-entropy, l1.

    The loss is −log softmax(z)_y; the search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2103.01208: sparse steps, exact projection onto ball and box, and a ball that shrinks from 3·eps.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l1", loss="ce", **knobs)
