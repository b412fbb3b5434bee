"""Screen: a cheap ensemble for daily work, distinct from AutoAttack."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attacks_pool.metadata import AttackInfo, Norm
from attacks_pool.registry import register
from attacks_pool.search.ensemble import EOT, Members, bind, total_cost, worst_of

BUDGET = {"aimed": 3, "short": 30, "targets": 5, "scout": 10, "steps": 100, "restarts": 2, "queries": 200}


def members(norm: str, eot: int = 1) -> Members:
    """Short ascents towards the likeliest classes, Auto-PGD towards the nearest, and Square.

    For models that answer at random, Auto-PGD alone, with gradients averaged over ``eot`` draws.
    """
    end = "" if norm == "linf" else f"-{norm}"
    ranked = {"targets": BUDGET["targets"], "scout_steps": BUDGET["scout"], "steps": BUDGET["steps"]}
    if eot > 1:
        return [(f"apgd-mm{end}", {**ranked, "steps": BUDGET["short"], "restarts": 1, "eot_steps": eot})]
    # Steps of an eighth of eps, however many. In l1 they shrink with their number and change few coordinates.
    stride = {} if norm == "l1" else {"step_size": "eps/8"}
    return [
        (f"mt-pgd{end}", {"steps": BUDGET["short"], "restarts": 1, "targets": BUDGET["aimed"], **stride}),
        (f"apgd-mm{end}", {**ranked, "restarts": BUDGET["restarts"]}),
        (f"square{end}", {"steps": BUDGET["queries"]}),
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


@register(_info("screen", "linf"))
def screen(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, eot: int, **how: Any) -> Tensor:
    """Screening ensemble, linf: a tenth of AutoAttack's passes for nearly what AutoAttack finds.

    Multi-targeted PGD (``mt-pgd``, arXiv:1910.09338) of 30 steps of eps/8 towards three classes; ``apgd-mm``
    (arXiv:2206.07314) with 10 steps towards each of five classes and 2 × 100 towards the nearest; 200
    queries of Square, so that a defense without useful gradients does not appear robust. Each attacks what
    the one before has left. ``eot`` averages gradients over so many draws of a model that answers at random.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_of(model, x, y, bind(members("linf", eot), eps), **how)


@register(_info("screen-l2", "l2"))
def screen_l2(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, eot: int, **how: Any) -> Tensor:
    """Screening ensemble, l2: the members of ``screen`` in the l2 ball.

    Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_of(model, x, y, bind(members("l2", eot), eps), **how)


@register(_info("screen-l1", "l1"))
def screen_l1(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, eot: int, **how: Any) -> Tensor:
    """Screening ensemble, l1: the members of ``screen`` in the l1 ball.

    Shapes as in :class:`attacks_pool.Attack`.
    """
    return worst_of(model, x, y, bind(members("l1", eot), eps), **how)
