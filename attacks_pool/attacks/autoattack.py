"""AutoAttack: the published ensemble at the published budgets, in linf, l2 and l1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.registry import register
from attacks_pool.search.ensemble import Members, bind, total_cost, worst_of


@dataclass(frozen=True)
class Budget:
    """The budget of the published ensemble. With any other budget the result is not AutoAttack."""

    steps: int = 100
    queries: int = 5000
    targets: int = 9
    targets_l1: int = 5
    restarts: int = 5
    eot_steps: int = 20


PUBLISHED = Budget()


def members(norm: str, version: str) -> Members:
    """The attacks of a version, in the published order."""
    end, budget = "" if norm == "linf" else f"-{norm}", PUBLISHED
    once = {"steps": budget.steps, "restarts": 1}
    often = {"steps": budget.steps, "restarts": budget.restarts}
    targeted = {**once, "targets": budget.targets}
    square = {"steps": budget.queries, "restarts": 1}
    if version == "rand":
        eot = {**once, "eot_steps": budget.eot_steps}
        return [(f"apgd-ce{end}", eot), (f"apgd-dlr{end}", eot)]
    if version == "plus":
        return [
            (f"apgd-ce{end}", often),
            (f"apgd-dlr{end}", often),
            (f"fab{end}", often),
            (f"square{end}", square),
            (f"apgd-t{end}", targeted),
            (f"fab-t{end}", targeted),
        ]
    return [
        (f"apgd-ce{end}", often if norm == "l1" else once),
        (f"apgd-t{end}", {**once, "targets": budget.targets_l1} if norm == "l1" else targeted),
        (f"fab-t{end}", targeted),
        (f"square{end}", square),
    ]


def _info(name: str, norm: Norm, paper: str) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="ensemble",
        norm=norm,
        access="white-box",
        paper=paper,
        reduced_precision=True,
        knobs={
            "version": Knob("standard", "version of the ensemble", choices=("standard", "plus", "rand")),
        },
        cost=lambda knobs, classes: total_cost(members(norm, str(knobs["version"])), classes),
    )


@register(_info("autoattack", "linf", "2003.01690"))
def autoattack(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """AutoAttack, linf: APGD-CE 100 steps, APGD-T and FAB-T 100 × 9 targets, Square 5,000 queries.

    Croce and Hein, arXiv:2003.01690. ``plus`` adds APGD-DLR and untargeted FAB and gives APGD-CE, APGD-DLR
    and FAB five restarts; ``rand`` is APGD-CE and APGD-DLR with gradients averaged over 20 draws. Budgets are
    not knobs, because AutoAttack has a fixed budget. With fewer than 10 classes, the targeted parts use all
    of them. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("linf", model, x, y, **knobs)


@register(_info("autoattack-l2", "l2", "2003.01690"))
def autoattack_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """AutoAttack, l2: the same four attacks in the l2 ball.

    Croce and Hein, arXiv:2003.01690; see ``autoattack``. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("l2", model, x, y, **knobs)


@register(_info("autoattack-l1", "l1", "2103.01208"))
def autoattack_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """AutoAttack, l1: APGD-CE with 5 restarts, APGD-T 100 × 5 targets, FAB-T 100 × 9, Square 5,000 queries.

    Croce and Hein, arXiv:2103.01208: both APGDs start in balls of three and two times eps. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return _run("l1", model, x, y, **knobs)


def _run(
    norm: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: str,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    # In the ensemble, Square uses the schedule for 10,000 queries; alone, it stretches the schedule.
    attacks = [
        replace(attack, function=partial(attack.function, rescale=False))
        if attack.info.family == "query"
        else attack
        for attack in bind(members(norm, version), eps)
    ]
    return worst_of(model, x, y, attacks, generator=generator, early_stop=early_stop)
