"""Screen: a cheap ensemble for daily work. It is not AutoAttack and is never called so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.ensemble import Members, bind, total_cost, worst_of
from attacks_pool.metadata import AttackInfo, Norm
from attacks_pool.registry import register

BUDGET = {"steps": 100, "targets": 5, "queries": 1500}


def members(norm: str) -> Members:
    """The likeliest classes one by one, as long as in AutoAttack, then a search without gradients."""
    end = "" if norm == "linf" else f"-{norm}"
    return [
        (f"apgd-t{end}", {"steps": BUDGET["steps"], "targets": BUDGET["targets"]}),
        (f"square{end}", {"steps": BUDGET["queries"]}),
    ]


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="ensemble",
        norm=norm,
        access="white-box",
        paper="2003.01690",
        reduced_precision=True,
        cost=lambda _knobs, classes: total_cost(members(norm), classes),
    )


@register(_info("screen", "linf"))
def screen(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Screening ensemble, linf: targeted Auto-PGD 100 steps × 5 classes, Square 1,500 queries.

    A quarter of AutoAttack's passes, for every day. On MNIST few long targeted searches found more than many
    short ones, with or without the probability margin (``pma``) in front. Square is there so that a defense
    without useful gradients does not pass. Shapes as in :class:`attacks_pool.Attack`.
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
