"""The evaluation contract: which points an attack gets, what it draws with, and who judges the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.data import Split
from attacks_pool import Attack, ModelState, Passes, count_passes, verify
from attacks_pool.randomness import keyed_generator
from attacks_pool.search import search_model
from attacks_pool.verifier import exact_arithmetic, predict_exactly
from leaderboards import CLEAN, Cell, Threat

BLOCK_ELEMENTS = 2**20
"""Pixels in a block. Blocks are part of what a number means: changing this changes random draws."""
WORTH_PREPARING = 8
"""Forward passes a point from which a search is worth a faster form of the model."""


@dataclass
class Row:
    """One row of R: clean predictions (n,), what survives each attack (A, n), cells, and what went wrong."""

    stage: int
    clean: NDArray[np.bool_]
    robust: NDArray[np.bool_]
    cells: list[Cell] = field(default_factory=list)
    not_a_number: int = 0
    changed: dict[str, list[str]] = field(default_factory=dict)


def blocks(shape: Sequence[int], points: int) -> Iterator[slice]:
    """Fixed runs of test points, from the image shape alone: a power of two between 16 and 512 each."""
    size = 16
    while size < 512 and 2 * size * int(np.prod(shape)) <= BLOCK_ELEMENTS:
        size *= 2
    for start in range(0, points, size):
        yield slice(start, min(start + size, points))


def evaluate(
    view: Callable[[Attack | None], nn.Module],
    data: Split,
    attacks: Sequence[tuple[Attack, int]],
    *,
    stage: int,
    seed: int,
    progress: Callable[[Cell], None] | None = None,
) -> Row:
    """Measure one row of R.

    An attack gets only points that are right clean; every crafted point is verified and predicted again in
    float32 on the defense as it is.

    Args:
        view: the module to attack and judge for an attack (``Defense.view``); ``None`` for clean.
        data: test points on the model's device.
        attacks: each with the number of points, from the first on, that it is measured on.
        stage: the row; with ``seed``, the attack's text and the block it keys every random draw.
        seed: of the run.
        progress: called after each cell, the clean one first.
    """
    points = len(data)
    row = Row(stage, np.zeros(points, dtype=bool), np.zeros((len(attacks), points), dtype=bool))
    row.cells.append(_clean_cell(view(None), data, row))
    if progress is not None:
        progress(row.cells[-1])
    for number, (attack, limit) in enumerate(attacks):
        row.cells.append(_attack_cell(view(attack), data, attack, limit, row, number, seed))
        if progress is not None:
            progress(row.cells[-1])
    return row


def _clean_cell(model: nn.Module, data: Split, row: Row) -> Cell:
    began = time.perf_counter()
    for block in blocks(data.x.shape[1:], len(data)):
        scores = predict_exactly(model, data.x[block])
        finite = torch.isfinite(scores).all(1)
        row.not_a_number += int((~finite).sum())
        row.clean[block] = ((scores.argmax(1) == data.y[block]) & finite).cpu().numpy()
    correct, points = int(row.clean.sum()), len(data)
    return Cell(
        stage=row.stage,
        attack=CLEAN,
        threat=Threat(norm=None, eps=None, access="none"),
        n=points,
        clean_correct=correct,
        robust=correct,
        invalid=0,
        seconds=time.perf_counter() - began,
        forwards=points,
        backwards=0,
        bound="none",
    )


def _attack_cell(
    model: nn.Module, data: Split, attack: Attack, limit: int, row: Row, number: int, seed: int
) -> Cell:
    began = time.perf_counter()
    state = ModelState(model)
    invalid = forwards = backwards = 0
    for index, block in enumerate(blocks(data.x.shape[1:], limit)):
        right = torch.as_tensor(row.clean[block], device=data.x.device)
        x, y = data.x[block][right], data.y[block][right]
        if not len(x):
            continue
        draws = keyed_generator("evaluate", seed, row.stage, attack.text, index)
        x_adv, passes = _craft(attack, model, x, y, draws)
        forwards, backwards = forwards + passes.forwards, backwards + passes.backwards
        if changes := state.changes():
            # The search ran on a model that it moved; the verdict must not.
            state.restore()
            row.changed[attack.text] = changes
        verdict = verify(model, x, y, x_adv, norm=attack.info.norm, eps=attack.eps, kind=attack.info.kind)
        invalid += int(verdict.invalid.sum())
        row.not_a_number += int(verdict.not_a_number.sum())
        survived = row.robust[number, block]
        survived[row.clean[block]] = verdict.robust.cpu().numpy()
    return Cell(
        stage=row.stage,
        attack=attack.text,
        threat=Threat(norm=attack.info.norm, eps=attack.eps, access=attack.info.access),
        n=limit,
        clean_correct=int(row.clean[:limit].sum()),
        robust=int(row.robust[number].sum()),
        invalid=invalid,
        seconds=time.perf_counter() - began,
        forwards=forwards,
        backwards=backwards,
        bound="box-only" if attack.info.norm is None else "norm",
    )


def _craft(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, draws: torch.Generator
) -> tuple[Tensor, Passes]:
    """What the attack finds, and the sample-passes that it took, on whichever form of the model."""
    cost = attack.info.passes(attack.knobs)
    searched = model
    if cost is not None and cost[0] >= WORTH_PREPARING:
        searched = search_model(model, x, reduced=attack.info.reduced_precision)
    with exact_arithmetic(x.device), count_passes(model) as exact:
        if searched is model:
            return attack(model, x, y, generator=draws, early_stop=True), exact
        with count_passes(searched) as fast:
            x_adv = attack(searched, x, y, generator=draws, early_stop=True)
    return x_adv, Passes(exact.forwards + fast.forwards, exact.backwards + fast.backwards)
