"""Auto-PGD towards the class of smallest margin, which short searches determine."""

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, ranked_ascent, ranked_cost

RANKED = {
    **KNOBS,
    "restarts": Knob(3, "random starts of the long search", training=1, low=1),
    "targets": Knob(5, "number of likeliest wrong classes to search briefly", training=1, low=1),
    "scout_steps": Knob(10, "steps of a short search", training=3, low=1),
}
"""The knobs of the search that ranks target classes."""


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="projected-gradient",
        norm=norm,
        access="white-box",
        paper="2206.07314",
        reduced_precision=True,
        cost=ranked_cost(norm),
        knobs=RANKED,
    )


@register(_info("apgd-mm", "linf"))
def apgd_mm(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD towards the class of smallest margin, linf.

    The minimum-margin attack (Gao et al., arXiv:2206.07314) introduced the ranking of target classes by short
    searches. Search and loss are those of ``apgd-t`` (arXiv:2003.01690), see
    :func:`attacks_pool.search.auto_pgd.ranked_ascent`. On adversarially trained MNIST networks, 50 short and
    100 long steps fooled as many points as 100 steps towards each of nine classes.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    return ranked_ascent(model, x, y, norm="linf", **knobs)


@register(_info("apgd-mm-l2", "l2"))
def apgd_mm_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD towards the class of smallest margin, l2; like ``apgd-mm``.

    arXiv:2206.07314, arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return ranked_ascent(model, x, y, norm="l2", **knobs)


@register(_info("apgd-mm-l1", "l1"))
def apgd_mm_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Auto-PGD towards the class of smallest margin, l1; like ``apgd-mm``, with the steps of ``apgd-t-l1``.

    arXiv:2206.07314, arXiv:2103.01208. Shapes as in :class:`attacks_pool.Attack`.
    """
    return ranked_ascent(model, x, y, norm="l1", **knobs)
