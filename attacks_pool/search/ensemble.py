"""Several attacks as one: each point counts by the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import PartGenerator, draw_seed, keyed_generator
from attacks_pool.losses import margin
from attacks_pool.norms import project
from attacks_pool.registry import pool
from attacks_pool.search.ascent import fooled

Members = Sequence[tuple[str, Mapping[str, Any]]]
"""Registered names, each with its knobs; ``eps`` is the ensemble's."""


def bind(members: Members, eps: float) -> list[Attack]:
    """The members at the ensemble's budget."""
    return [pool.bind(name, {"eps": eps, **knobs}) for name, knobs in members]


def worst_of(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    members: Sequence[Attack],
    *,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """The first member's point that fools the model inside the ball, else the one of largest margin.

    With ``early_stop`` a member meets only the points that all before it left standing; without it, every
    member crafts on every point for all its steps. What a minimal-norm member finds beyond ``eps`` is brought
    back before it is looked at. Each member draws from a generator of its own, and for all points, so that
    what a point gets does not depend on which others still stand.

    Returns:
        x_adv like ``x`` (N, C, H, W).
    """
    base = draw_seed(generator)
    best, best_gap = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    standing = torch.arange(len(x), device=x.device)
    for number, member in enumerate(members):
        if not len(standing):
            break
        draws = PartGenerator.of(keyed_generator(base, number, member.name), len(x), standing)
        found = member.function(
            model,
            x[standing].clone(),
            y[standing].clone(),
            generator=draws,
            early_stop=early_stop,
            **member.knobs,
        ).detach()
        if member.info.kind == "minimal-norm" and member.info.norm is not None:
            found = project(found, x[standing], member.eps, member.info.norm)
        gap, beaten = _judge(model, y[standing], found)
        better = gap > best_gap[standing]
        best[standing[better]], best_gap[standing[better]] = found[better], gap[better]
        if early_stop:
            standing = standing[~beaten]
    return best


def _judge(model: nn.Module, y: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The margin of what was found, infinite where it fools the model; and where it does."""
    with torch.no_grad():
        logits = model(found)
    beaten = fooled(model, found, y, logits)
    gap = torch.nan_to_num(margin(logits, y), nan=torch.inf)
    return torch.where(beaten, torch.inf, gap.clamp_max(torch.finfo(gap.dtype).max)), beaten


def total_cost(members: Members, classes: int) -> tuple[int, int]:
    """Passes of all members together, and one look at what each found."""
    costs = [attack.info.passes(attack.knobs, classes) or (0, 0) for attack in bind(members, 0.1)]
    return sum(forward for forward, _ in costs) + len(costs), sum(backward for _, backward in costs)
