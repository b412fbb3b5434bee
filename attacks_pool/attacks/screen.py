"""Screen: a cheap ensemble for daily work, distinct from AutoAttack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Norm
from attacks_pool.registry import register
from attacks_pool.search.ensemble import Members, bind, total_cost, worst_of

BUDGET = {"steps": 100, "scout_steps": 10, "targets": 5, "restarts": 5, "queries": 300}


def members(norm: str) -> Members:
    """Auto-PGD towards the class of smallest margin, then Square, which needs no gradients."""
    end = "" if norm == "linf" else f"-{norm}"
    searches = {name: value for name, value in BUDGET.items() if name != "queries"}
    return [(f"apgd-mm{end}", searches), (f"square{end}", {"steps": BUDGET["queries"]})]


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="ensemble",
        norm=norm,
        access="white-box",
        paper="2206.07314",
        reduced_precision=True,
        cost=lambda _knobs, classes: total_cost(members(norm), classes),
    )


@register(_info("screen", "linf"))
def screen(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Screening ensemble, linf: Auto-PGD towards the class of smallest margin, then Square, 300 queries.

    ``apgd-mm`` takes 10 steps towards each of five classes and 5 × 100 steps towards the nearest. In total it
    costs a sixth of AutoAttack's passes. On MNIST, restarts towards one class fooled more points than the
    same steps spent on more classes, on 1,500 queries of Square or on the probability margin (``pma``).
    Square is included so that a defense without useful gradients does not appear robust. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return _run("linf", model, x, y, **knobs)


@register(_info("screen-l2", "l2"))
def screen_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Screening ensemble, l2: the members of ``screen`` in the l2 ball.

    Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("l2", model, x, y, **knobs)


@register(_info("screen-l1", "l1"))
def screen_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Screening ensemble, l1: the members of ``screen`` in the l1 ball.

    Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("l1", model, x, y, **knobs)


def _run(
    norm: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    attacks = bind(members(norm), eps)
    return worst_of(model, x, y, attacks, generator=generator, early_stop=early_stop)
