"""PMA: Auto-PGD on the probability margin."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Norm
from attacks_pool.registry import register
from attacks_pool.search.auto_pgd import KNOBS, adaptive_ascent, cost


def _register(name: str, norm: Norm) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    return register(
        AttackInfo(
            name=name,
            family="projected-gradient",
            norm=norm,
            access="white-box",
            paper="2411.15210",
            reduced_precision=True,
            cost=cost(norm),
            knobs=KNOBS,
        )
    )


@_register("pma", "linf")
def pma(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Probability-margin attack, linf: maximise max_{k≠y} p_k − p_y with p = softmax(f(x)).

    arXiv:2411.15210 finds this loss the strongest single one. The search is Auto-PGD
    (:func:`attacks_pool.search.auto_pgd.adaptive_ascent`). Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="linf", loss="probability-margin", **knobs)


@_register("pma-l2", "l2")
def pma_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Probability-margin attack, l2: maximise max_{k≠y} p_k − p_y with p = softmax(f(x)).

    arXiv:2411.15210, like ``pma``. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l2", loss="probability-margin", **knobs)


@_register("pma-l1", "l1")
def pma_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Probability-margin attack, l1: maximise max_{k≠y} p_k − p_y with p = softmax(f(x)).

    arXiv:2411.15210, like ``pma``. Shapes as in :class:`attacks_pool.Attack`.
    """
    return adaptive_ascent(model, x, y, norm="l1", loss="probability-margin", **knobs)
