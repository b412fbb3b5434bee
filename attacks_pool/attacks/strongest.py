"""Strongest: an ensemble that spends the passes of AutoAttack where they find more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.registry import register
from attacks_pool.search.ensemble import Members, bind, total_cost, worst_of

BRIEF = {"targets": 3, "steps": 50, "restarts": 1}
"""Short ascents towards the likeliest classes, in steps of an eighth of eps, which do not grow shorter."""
RANKED = {"targets": 3, "scout_steps": 25, "steps": 100, "restarts": 4}
"""Starts towards the class that short searches bring nearest; each of ``ROUNDS`` may choose another."""
ROUNDS = 5
BROAD = {"targets": 9, "steps": 50, "restarts": 1}
PLAIN_STEPS, QUERIES = 100, 1500
AVERAGED = {"targets": 3, "scout_steps": 5, "steps": 80}
"""The search for models that answer at random, where each step costs ``eot`` passes."""


def members(norm: str, eot: int = 1) -> Members:
    """The searches, cheapest first; for models that answer at random, two with averaged gradients."""
    end = "" if norm == "linf" else f"-{norm}"
    plain = {"steps": PLAIN_STEPS, "restarts": 1, "eot_steps": eot}
    if eot > 1:
        starts = max(1, ROUNDS * RANKED["restarts"] // eot)
        return [
            (f"apgd-ce{end}", plain),
            (f"apgd-mm{end}", {**AVERAGED, "eot_steps": eot, "restarts": starts}),
        ]
    # In l1, steps change few coordinates, and their length falls with their number as in ``pgd-l1``.
    stride = {} if norm == "l1" else {"step_size": "eps/8"}
    ranked = f"apgd-mm{end}", RANKED
    return [
        (f"mt-pgd{end}", {**BRIEF, **stride}),
        ranked,
        (f"apgd-ce{end}", plain),
        (f"square{end}", {"steps": QUERIES, "restarts": 1}),
        (f"mt-pgd{end}", {**BROAD, **stride}),
        *[ranked] * (ROUNDS - 1),
    ]


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="ensemble",
        norm=norm,
        access="white-box",
        paper="2206.07314",
        reduced_precision=True,
        knobs={"eot": Knob(1, "draws of a model that answers at random, averaged for each gradient", low=1)},
        cost=lambda knobs, classes: total_cost(members(norm, int(knobs["eot"])), classes),
    )


@register(_info("strongest", "linf"))
def strongest(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """An ensemble that leaves no more than AutoAttack, with fewer passes than AutoAttack's, linf.

    Multi-targeted PGD (``mt-pgd``, arXiv:1910.09338) with steps of eps/8; five rounds of Auto-PGD from 4
    starts towards the class that short searches bring nearest (``apgd-mm``, arXiv:2206.07314); between them
    APGD-CE (arXiv:2003.01690), Square with 1,500 queries, and ``mt-pgd`` towards 9 classes. Each member
    attacks what the members before it have left. AutoAttack spends half of its passes on 5,000 queries of
    Square and a third on FAB, which find little where gradients are not masked. ``eot`` averages gradients
    over so many draws of a model that answers at random. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("linf", model, x, y, **knobs)


@register(_info("strongest-l2", "l2"))
def strongest_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """The members of ``strongest`` in the l2 ball.

    arXiv:2206.07314, arXiv:2003.01690. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("l2", model, x, y, **knobs)


@register(_info("strongest-l1", "l1"))
def strongest_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """The members of ``strongest`` in the l1 ball.

    arXiv:2206.07314, arXiv:2103.01208. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _run("l1", model, x, y, **knobs)


def _run(
    norm: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    eot: int,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    attacks = bind(members(norm, eot), eps)
    return worst_of(model, x, y, attacks, generator=generator, early_stop=early_stop)
