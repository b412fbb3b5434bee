"""Saves the points that the attacks of an evaluation crafted, and says where, for the record."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from advbench.data import DataSet, Split
from advbench.evaluation.row import MatrixRow
from advbench.evaluation.shards import Setting
from advbench.external import Foreign
from advbench.runs.examples import write_examples
from advbench.runs.pieces import Pieces
from attacks_pool import Attack


def save_crafted(
    file: Path,
    directory: Path,
    row: MatrixRow,
    pieces: Pieces,
    *,
    test: Split,
    attacks: Sequence[tuple[Attack, int]],
    seed: int,
    foreign: Foreign,
    data: DataSet,
) -> dict[str, str]:
    """Write the crafted points of a finished row to ``file``.

    Args:
        file: the safetensors file.
        directory: the run's directory.
        row: the outcomes.
        pieces: the store of the row's pieces, with crafted points.
        test, attacks, seed: what the row was measured on and with.
        foreign, data: the model and the data set, for the file's metadata.

    Returns:
        The file's path, relative to the run so that both can be moved together, and its SHA-256.

    Raises:
        RecordError: the file cannot be written, or a piece is damaged.
    """
    about = {
        "format": "advbench-examples",
        "model": foreign.name,
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "attacks": json.dumps([attack.text for attack, _ in attacks]),
    }
    crafted = functools.partial(pieces.examples, setting=Setting(row.stage, seed, row.draws))
    checksum = write_examples(file, test, attacks, row, crafted, about)
    place = os.path.relpath(file.resolve(), directory.resolve())
    return {"file": Path(place).as_posix(), "sha256": checksum}
