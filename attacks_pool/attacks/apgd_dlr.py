"""Auto-PGD on the difference of logits ratio."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, adaptive_ascent, cost


@register(
    AttackInfo(
        name="apgd-dlr",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=cost("linf"),
        knobs=KNOBS,
    )
)
def apgd_dlr(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the difference of logits ratio, linf.

    The loss is −(z_y − max_{k≠y} z_k) / (z_π1 − z_π3), or the margin if there are only two classes; the
    search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", loss="dlr", **knobs)


@register(
    AttackInfo(
        name="apgd-dlr-l2",
        family="projected-gradient",
        norm="l2",
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=cost("l2"),
        knobs=KNOBS,
    )
)
def apgd_dlr_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the difference of logits ratio, l2.

    The loss is −(z_y − max_{k≠y} z_k) / (z_π1 − z_π3), or the margin if there are only two classes; the
    search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2003.01690; it starts on the sphere. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l2", loss="dlr", **knobs)


@register(
    AttackInfo(
        name="apgd-dlr-l1",
        family="projected-gradient",
        norm="l1",
        access="white-box",
        paper="2103.01208",
        reduced_precision=True,
        cost=cost("l1"),
        knobs=KNOBS,
    )
)
def apgd_dlr_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD on the difference of logits ratio, l1.

    The loss is −(z_y − max_{k≠y} z_k) / (z_π1 − z_π3), or the margin if there are only two classes; the
    search is :func:`attacks_pool.search.auto_pgd.adaptive_ascent`,
    arXiv:2103.01208: sparse steps, exact projection onto ball and box, and a ball that shrinks from 3·eps.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l1", loss="dlr", **knobs)
