"""The evaluation contract: the points of an attack, its random draws, and the verdict on its result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advbench.data import Split
from advbench.evaluation.row import MatrixRow, add_cell
from advbench.evaluation.shards import Piece, Setting, Shard, View, compute, shards
from advbench.evaluation.stochastic import JUDGED_BY, is_stochastic
from advbench.runtime.timeouts import limited
from attacks_pool import Attack
from leaderboards import Cell

LOOKED_AT = 32
"""The number of points for detecting a stochastic defense."""


class Kept(Protocol):
    """A store of finished pieces, so that none is measured twice."""

    def get(self, shard: Shard, setting: Setting) -> Piece | None:
        """The stored piece of this shard, if there is one."""

    def put(self, shard: Shard, setting: Setting, piece: Piece) -> None:
        """Keep it."""


class Others(Protocol):
    """Other processes that measure some of a row's shards."""

    def share(self, attacked: Sequence[Shard], setting: Setting, kept: Kept) -> Kept:
        """Make them measure their part of what ``kept`` lacks; the store returned waits for it."""


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
    surrogate_key: str = "",
    device: torch.device | None = None,
    kept: Kept | None = None,
    attack_timeout: float | None = None,
    examples: bool = False,
    others: Others | None = None,
) -> MatrixRow:
    """Measure one row of R.

    An attack gets only points that are classified correctly when clean; every crafted point is verified and
    predicted again in float32 on the unmodified defense. A stochastic defense is judged, clean and attacked,
    by the mean softmax over 16 fresh draws, and attacked with gradients averaged over 20 others.

    Args:
        view: returns the module to attack and judge for an attack (``Defense.view``), or ``None`` for clean.
        data: test points; one block at a time is moved to ``device``.
        attacks: each with the number of points, from the first on, that it is measured on.
        stage: the row; together with ``seed``, the attack's text and the block, the key of every draw.
        seed: the run's seed.
        progress: called after each cell, the clean one first.
        stochastic: whether the defense is randomised; ``None`` queries it twice to find out.
        surrogate: the model that attacks search instead of the defense; access is then ``transfer``.
        surrogate_key: distinguishes surrogates in the store of pieces.
        device: the device of the model; by default that of ``data``.
        kept: the store of finished pieces.
        attack_timeout: seconds that an attack may take for a block.
        examples: store the crafted points in ``kept``, where there must be one.
        others: other processes to measure shards along with this one, if there is a store.

    Raises:
        AttackTimeoutError: an attack took longer.
    """
    view = _last_one(view)
    setting = Setting(stage, seed, 1, device or data.images.device, surrogate, surrogate_key, examples)
    setting = _judged(setting, view, data, stochastic)
    clean, robust = np.zeros(len(data), dtype=bool), np.zeros((len(attacks), len(data)), dtype=bool)
    row = MatrixRow(stage, clean, robust, draws=setting.draws)
    found: list[tuple[Shard, Piece]] = []
    every = list(shards(data, attacks))
    if others is not None and kept is not None:
        kept = others.share([shard for shard in every if shard.attack is not None], setting, kept)
    for number, shard in enumerate(every):
        piece = _piece(shard, view, data, setting, row.clean[shard.block], kept, attack_timeout)
        found.append((shard, piece))
        if number + 1 == len(every) or every[number + 1].attack is not shard.attack:
            add_cell(row, setting, found)
            found = []
            if progress is not None:
                progress(row.cells[-1])
    return row


def measure_share(
    view: View,
    data: Split,
    attacks: Sequence[tuple[Attack, int]],
    *,
    stage: int,
    seed: int,
    kept: Kept,
    mine: Callable[[int], bool],
    stochastic: bool | None = None,
    device: torch.device | None = None,
    attack_timeout: float | None = None,
    examples: bool = False,
) -> None:
    """Measure some of the shards of a row, for :func:`evaluate` to find in ``kept``.

    The arguments are those of :func:`evaluate`, and ``mine``, which says for the number of a shard among
    those of all attacks whether to measure it. Clean points, which all shards need, are predicted on demand.

    Raises:
        AttackTimeoutError: an attack took longer than ``attack_timeout``.
    """
    view = _last_one(view)
    setting = Setting(stage, seed, 1, device or data.images.device, examples=examples)
    setting = _judged(setting, view, data, stochastic)
    clean = {shard.index: shard for shard in shards(data, []) if shard.attack is None}
    attacked = [shard for shard in shards(data, attacks) if shard.attack is not None]
    for shard in (shard for number, shard in enumerate(attacked) if mine(number)):
        nothing = np.zeros(shard.stop - shard.start, dtype=bool)
        right = _piece(clean[shard.index], view, data, setting, nothing, kept, None).right
        _piece(shard, view, data, setting, right[: len(nothing)], kept, attack_timeout)


def measure_some(
    view: View,
    data: Split,
    attacks: Sequence[tuple[Attack, int]],
    clean: NDArray[np.bool_],
    wanted: Callable[[Shard], bool],
    *,
    stage: int,
    seed: int,
    stochastic: bool | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[Shard, Piece]]:
    """Measure the ``wanted`` shards of a row, exactly as :func:`evaluate` would.

    Args:
        view, data, attacks, stage, seed, stochastic, device: the arguments of :func:`evaluate`; other values
            may change the results of a shard.
        clean: (n,) the points that attacks get: those that are correct clean.
        wanted: selects the shards, including clean ones.
    """
    view = _last_one(view)
    setting = _judged(Setting(stage, seed, 1, device or data.images.device), view, data, stochastic)
    for shard in filter(wanted, shards(data, attacks)):
        yield shard, _piece(shard, view, data, setting, clean[shard.block], None, None)


def _judged(setting: Setting, view: View, data: Split, stochastic: bool | None) -> Setting:
    """The setting with the number of draws that the model needs."""
    if stochastic is None:
        stochastic = is_stochastic(view(None), data.images[:LOOKED_AT].to(setting.device), setting.seed)
    return replace(setting, draws=JUDGED_BY) if stochastic else setting


def _piece(
    shard: Shard,
    view: View,
    data: Split,
    setting: Setting,
    clean: NDArray[np.bool_],
    kept: Kept | None,
    attack_timeout: float | None,
) -> Piece:
    """The piece of a shard, from the store or measured now."""
    piece = None if kept is None else kept.get(shard, setting)
    if piece is None:
        # Clean passes run only the user's defense, so no limit applies to them.
        seconds = None if shard.attack is None else attack_timeout
        with limited(seconds, f"attack {shard.text!r} on row {setting.stage}, block {shard.index}"):
            piece = compute(shard, view, data, setting, clean)
        if kept is not None:
            kept.put(shard, setting, piece)
            # The store has them; one block of them at a time is enough in memory.
            piece = replace(piece, examples=None)
    return piece


def _last_one(view: View) -> View:
    """The same view, called once for all blocks of an attack, because building a view may take time."""
    kept: list[tuple[Attack | None, nn.Module]] = []

    def asked(attack: Attack | None) -> nn.Module:
        if not kept or kept[0][0] is not attack:
            kept[:] = [(attack, view(attack))]
        return kept[0][1]

    return asked
