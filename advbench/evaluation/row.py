"""One row of R: the robustness of one stage of a defense."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from advbench.evaluation.shards import Piece, Setting, Shard
from leaderboards import Cell, Threat


@dataclass
class MatrixRow:
    """One row of R: clean predictions (n,), points that survive each attack (A, n), cells, and faults.

    ``draws`` is how many draws of the defense judged each point: 1 unless it is stochastic. For a stochastic
    defense, ``single`` maps the attacks (and ``clean``) to the points that survive by a single draw.
    """

    stage: int
    clean: NDArray[np.bool_]
    robust: NDArray[np.bool_]
    cells: list[Cell] = field(default_factory=list)
    not_a_number: int = 0
    changed: dict[str, list[str]] = field(default_factory=dict)
    draws: int = 1
    single: dict[str, int] = field(default_factory=dict)


def add_cell(row: MatrixRow, setting: Setting, found: Sequence[tuple[Shard, Piece]]) -> None:
    """Put the pieces of one attack, in the order of their blocks, into the row."""
    first, limit = found[0][0], found[-1][0].stop
    attack, text = first.attack, first.text
    outcome = row.clean if attack is None else row.robust[len(row.cells) - 1]
    for shard, piece in found:
        outcome[shard.block] = piece.right
        row.not_a_number += piece.not_a_number
        if piece.changed:
            row.changed[text] = list(piece.changed)
        if piece.single is not None:
            row.single[text] = row.single.get(text, 0) + piece.single
    threat = Threat(norm=None, eps=None, access="none")
    if attack is not None:
        access = "transfer" if setting.surrogate is not None else attack.info.access
        threat = Threat(norm=attack.info.norm, eps=attack.eps, access=access)
    abstained = [piece.abstained for _, piece in found if piece.abstained is not None]
    row.cells.append(
        Cell(
            stage=row.stage,
            attack=text,
            threat=threat,
            n=limit,
            clean_correct=int(row.clean[:limit].sum()),
            robust=int(outcome.sum()),
            invalid=sum(piece.invalid for _, piece in found),
            seconds=sum(piece.seconds for _, piece in found),
            forwards=sum(piece.forwards for _, piece in found),
            backwards=sum(piece.backwards for _, piece in found),
            bound="none" if attack is None else "box-only" if attack.info.norm is None else "norm",
            abstained=sum(abstained) if abstained else None,
        )
    )
