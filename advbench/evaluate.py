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
from advbench.stochastic import JUDGED_BY, AveragedDraws, MeanOfDraws, is_stochastic
from attacks_pool import Attack, ModelState, Passes, count_passes, verify
from attacks_pool.randomness import keyed_generator
from attacks_pool.search import search_model
from attacks_pool.verifier import exact_arithmetic, predict_exactly
from leaderboards import CLEAN, Cell, Threat

BLOCK_ELEMENTS = 2**20
"""Pixels in a block. Blocks are part of what a number means: changing this changes random draws."""
WORTH_PREPARING = 8
"""Forward passes a point from which a search is worth a faster form of the model."""
LOOKED_AT = 32
"""Points by which a stochastic defense is found."""
View = Callable[[Attack | None], nn.Module]
"""The module to attack and judge for an attack; ``None`` asks for the one that sees clean points."""


@dataclass
class Row:
    """One row of R: clean predictions (n,), what survives each attack (A, n), cells, and what went wrong.

    ``draws`` is how many draws of the defense judged each point: 1 unless it is stochastic; ``single`` then
    maps the attacks (and ``clean``) to the points that survive by one draw alone.
    """

    stage: int
    clean: NDArray[np.bool_]
    robust: NDArray[np.bool_]
    cells: list[Cell] = field(default_factory=list)
    not_a_number: int = 0
    changed: dict[str, list[str]] = field(default_factory=dict)
    draws: int = 1
    single: dict[str, int] = field(default_factory=dict)


def blocks(shape: Sequence[int], points: int) -> Iterator[slice]:
    """Fixed runs of test points, from the image shape alone: a power of two between 16 and 512 each."""
    size = 16
    while size < 512 and 2 * size * int(np.prod(shape)) <= BLOCK_ELEMENTS:
        size *= 2
    for start in range(0, points, size):
        yield slice(start, min(start + size, points))


def evaluate(
    view: View,
    data: Split,
    attacks: Sequence[tuple[Attack, int]],
    *,
    stage: int,
    seed: int,
    progress: Callable[[Cell], None] | None = None,
    stochastic: bool | None = None,
    surrogate: View | None = None,
) -> Row:
    """Measure one row of R.

    An attack gets only points that are right clean; every crafted point is verified and predicted again in
    float32 on the defense as it is. A stochastic defense is judged, clean and attacked alike, by the mean
    softmax over 16 fresh draws, and searched with gradients averaged over 20 others.

    Args:
        view: the module to attack and judge for an attack (``Defense.view``); ``None`` for clean.
        data: test points on the model's device.
        attacks: each with the number of points, from the first on, that it is measured on.
        stage: the row; with ``seed``, the attack's text and the block it keys every random draw.
        seed: of the run.
        progress: called after each cell, the clean one first.
        stochastic: whether the defense answers at random; ``None`` asks it twice to find out.
        surrogate: what attacks search instead of the defense; access is then ``transfer``.
    """
    points = len(data)
    row = Row(stage, np.zeros(points, dtype=bool), np.zeros((len(attacks), points), dtype=bool))
    clean = view(None)
    if is_stochastic(clean, data.x[:LOOKED_AT], seed) if stochastic is None else stochastic:
        row.draws = JUDGED_BY
    row.cells.append(_clean_cell(clean, data, row, seed))
    if progress is not None:
        progress(row.cells[-1])
    for number, (attack, limit) in enumerate(attacks):
        searched = None if surrogate is None else surrogate(attack)
        row.cells.append(_attack_cell(view(attack), data, attack, limit, row, number, seed, searched))
        if progress is not None:
            progress(row.cells[-1])
    return row


def _judge(model: nn.Module, row: Row, *key: object) -> nn.Module:
    """What gives the verdict's scores; its draws are keyed apart from those of any search."""
    return model if row.draws == 1 else MeanOfDraws(model, (row.stage, *key), row.draws)


def _note_single(judge: nn.Module, y: Tensor, attack: str, row: Row) -> None:
    """Count what the first draw alone gets right."""
    if isinstance(judge, MeanOfDraws):
        row.single[attack] = row.single.get(attack, 0) + int((judge.single == y).sum())


def _clean_cell(model: nn.Module, data: Split, row: Row, seed: int) -> Cell:
    began = time.perf_counter()
    for index, block in enumerate(blocks(data.x.shape[1:], len(data))):
        judge = _judge(model, row, seed, CLEAN, index)
        scores = predict_exactly(judge, data.x[block])
        _note_single(judge, data.y[block], CLEAN, row)
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
        forwards=points * row.draws,
        backwards=0,
        bound="none",
    )


def _attack_cell(
    model: nn.Module,
    data: Split,
    attack: Attack,
    limit: int,
    row: Row,
    number: int,
    seed: int,
    surrogate: nn.Module | None,
) -> Cell:
    """One attack on one view; with ``surrogate`` the search runs there, for all its steps."""
    began = time.perf_counter()
    state = ModelState(model)
    invalid = forwards = backwards = 0
    for index, block in enumerate(blocks(data.x.shape[1:], limit)):
        right = torch.as_tensor(row.clean[block], device=data.x.device)
        x, y = data.x[block][right], data.y[block][right]
        if not len(x):
            continue
        draws = keyed_generator("evaluate", seed, row.stage, attack.text, index)
        if surrogate is not None:
            x_adv, passes = _craft(attack, surrogate, x, y, draws, early_stop=False)
        else:
            x_adv, passes = _craft(attack, model, x, y, draws, stochastic=row.draws > 1)
        forwards, backwards = forwards + passes.forwards, backwards + passes.backwards
        if changes := state.changes():
            # The search ran on a model that it moved; the verdict must not.
            state.restore()
            row.changed[attack.text] = changes
        judge = _judge(model, row, seed, attack.text, index)
        verdict = verify(judge, x, y, x_adv, norm=attack.info.norm, eps=attack.eps, kind=attack.info.kind)
        _note_single(judge, y, attack.text, row)
        invalid += int(verdict.invalid.sum())
        row.not_a_number += int(verdict.not_a_number.sum())
        survived = row.robust[number, block]
        survived[row.clean[block]] = verdict.robust.cpu().numpy()
    return Cell(
        stage=row.stage,
        attack=attack.text,
        threat=Threat(
            norm=attack.info.norm,
            eps=attack.eps,
            access=attack.info.access if surrogate is None else "transfer",
        ),
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
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    draws: torch.Generator,
    *,
    stochastic: bool = False,
    early_stop: bool = True,
) -> tuple[Tensor, Passes]:
    """What the attack finds, and the sample-passes that it took, on whichever form of the model."""
    cost = attack.info.passes(attack.knobs)
    searched = AveragedDraws(model) if stochastic else model
    # A point that fools these draws by a hair fools no others: it is searched to the end.
    early_stop = early_stop and not stochastic
    if not stochastic and cost is not None and cost[0] >= WORTH_PREPARING:
        searched = search_model(model, x, reduced=attack.info.reduced_precision)
    with exact_arithmetic(x.device), count_passes(model) as exact:
        if searched is model or stochastic:
            return attack(searched, x, y, generator=draws, early_stop=early_stop), exact
        with count_passes(searched) as fast:
            x_adv = attack(searched, x, y, generator=draws, early_stop=early_stop)
    return x_adv, Passes(exact.forwards + fast.forwards, exact.backwards + fast.backwards)
