"""Combines several attacks into one; the strongest result counts for each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import PartGenerator, draw_seed, drawn_for, keyed_generator
from attacks_pool.losses import margin
from attacks_pool.metadata import Knob
from attacks_pool.norms import project
from attacks_pool.registry import pool
from attacks_pool.search.ascent import fooled

EOT = Knob(1, "draws of a model that answers at random, averaged for each gradient", low=1)
"""The knob of ensembles for models that answer at random."""
Members = Sequence[tuple[str, Mapping[str, Any]]]
"""Registered attack names with their knobs; ``eps`` is that of the ensemble."""


def bind(members: Members, eps: float) -> list[Attack]:
    """Return the member attacks with the ensemble's budget."""
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
    """Return each point's first member result that fools the model in the ball, or that of largest margin.

    With ``early_stop``, each member attacks only the points that no earlier member has fooled; otherwise each
    member attacks every point for all its steps. The result of a minimal-norm member is first projected
    onto the eps ball. Each member has its own generator, which draws for all points, so that a point's
    draws do not depend on which other points remain.

    Returns:
        x_adv with the shape of ``x`` (N, C, H, W).
    """
    base = draw_seed(generator)
    best, best_gap = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    standing = torch.arange(len(x), device=x.device)
    total, places = drawn_for(generator, x)
    for number, member in enumerate(members):
        if not len(standing):
            break
        draws = PartGenerator.of(keyed_generator(base, number, member.name), total, places[standing])
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
    """The margin of each result, infinite where it fools the model, and a mask of those that fool it."""
    with torch.no_grad():
        logits = model(found)
    beaten = fooled(model, found, y, logits)
    gap = torch.nan_to_num(margin(logits, y), nan=torch.inf)
    return torch.where(beaten, torch.inf, gap.clamp_max(torch.finfo(gap.dtype).max)), beaten


def total_cost(members: Members, classes: int) -> tuple[int, int]:
    """Passes of all members together, plus one forward pass to judge each result."""
    costs = [attack.info.passes(attack.knobs, classes) or (0, 0) for attack in bind(members, 0.1)]
    return sum(forward for forward, _ in costs) + len(costs), sum(backward for _, backward in costs)
