"""Strongest: an ensemble that spends the passes of AutoAttack where they find more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Norm
from attacks_pool.registry import register
from attacks_pool.search.ensemble import EOT, Members, bind, total_cost, worst_of


@dataclass(frozen=True)
class StrongestBudget:
    """The budget of the ensemble.

    Attributes:
        steps: of a long search; ``short`` those of a short one, ``scout`` those of one that ranks classes.
        starts: long searches towards the nearest class in each of ``rounds``, which may choose another class.
        targets: the likeliest classes; ``broad`` as many as one short search from each aims at.
        queries: of Square.
        averaged: targets, steps of a scout and steps, for models that answer at random.
    """

    steps: int = 100
    short: int = 50
    scout: int = 25
    starts: int = 4
    rounds: int = 5
    targets: int = 3
    broad: int = 9
    queries: int = 1500
    averaged: tuple[int, int, int] = (3, 5, 80)


BUDGET = StrongestBudget()


def members(norm: str, eot: int = 1) -> Members:
    """The searches, cheapest first; for models that answer at random, two with averaged gradients."""
    end, budget = "" if norm == "linf" else f"-{norm}", BUDGET
    plain = f"apgd-ce{end}", {"steps": budget.steps, "restarts": 1, "eot_steps": eot}
    if eot > 1:
        targets, scout, steps = budget.averaged
        starts = max(1, budget.rounds * budget.starts // eot)
        search = {"targets": targets, "scout_steps": scout, "steps": steps, "restarts": starts}
        return [plain, (f"apgd-mm{end}", {**search, "eot_steps": eot})]
    # Steps of an eighth of eps, however many. In l1 they shrink with their number and change few coordinates.
    brief = {"steps": budget.short, "restarts": 1, **({} if norm == "l1" else {"step_size": "eps/8"})}
    ranked = {"scout_steps": budget.scout, "steps": budget.steps, "restarts": budget.starts}
    rounds = [(f"apgd-mm{end}", {**ranked, "targets": budget.targets})] * budget.rounds
    return [
        (f"mt-pgd{end}", {**brief, "targets": budget.targets}),
        rounds[0],
        plain,
        (f"square{end}", {"steps": budget.queries, "restarts": 1}),
        (f"mt-pgd{end}", {**brief, "targets": budget.broad}),
        *rounds[1:],
    ]


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="ensemble",
        norm=norm,
        access="white-box",
        paper="2206.07314",
        reduced_precision=True,
        knobs={"eot": EOT},
        cost=lambda knobs, classes: total_cost(members(norm, int(knobs["eot"])), classes),
    )


@register(_info("strongest", "linf"))
def strongest(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, eot: int, **how: Any) -> Tensor:
    """An ensemble made to leave less than AutoAttack with fewer passes, linf.

    Multi-targeted PGD (``mt-pgd``, arXiv:1910.09338) with steps of eps/8; five rounds of Auto-PGD from 4
    starts towards the class that short searches bring nearest (``apgd-mm``, arXiv:2206.07314); between them
    APGD-CE (arXiv:2003.01690), Square with 1,500 queries, and ``mt-pgd`` towards 9 classes. Each member
    attacks what the members before it have left. AutoAttack spends half of its passes on 5,000 queries of
    Square and a third on FAB, which find little where gradients are not masked. ``eot`` averages gradients
    over so many draws of a model that answers at random. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_of(model, x, y, bind(members("linf", eot), eps), **how)


@register(_info("strongest-l2", "l2"))
def strongest_l2(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, eot: int, **how: Any) -> Tensor:
    """The members of ``strongest`` in the l2 ball.

    arXiv:2206.07314, arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_of(model, x, y, bind(members("l2", eot), eps), **how)


@register(_info("strongest-l1", "l1"))
def strongest_l1(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, eot: int, **how: Any) -> Tensor:
    """The members of ``strongest`` in the l1 ball.

    arXiv:2206.07314, arXiv:2103.01208. Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_of(model, x, y, bind(members("l1", eot), eps), **how)
