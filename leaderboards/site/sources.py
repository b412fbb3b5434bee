"""The runs of a row: read from their directories, or from records in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaderboards.boards.row import Row
from leaderboards.errors import RecordError
from leaderboards.records.layout import OUTCOMES, RECORD
from leaderboards.records.limits import read_bounded
from leaderboards.records.record import Record, parse_record
from leaderboards.records.store import json_bytes, read_outcomes
from leaderboards.site.fields import trust_of_run
from leaderboards.statistics.results import stated


@dataclass(frozen=True)
class SiteSource:
    """A run: record, the bytes of ``record.json``, outcomes (T+1, A, n) if available, trust.

    ``outcomes`` holds the bytes of ``outcomes.npz`` if ``robust`` was read from such a file.
    """

    record: Record
    data: bytes
    robust: NDArray[np.bool_] | None
    trust: str
    outcomes: bytes | None = None


class Sources:
    """Finds the runs of rows, one at a time: ten thousand records need not be in memory."""

    def __init__(self, records: Iterable[Record], runs_dir: Path | None) -> None:
        self._runs_dir = runs_dir
        self._by_id: dict[str, list[Record]] = {}
        for record in records:
            self._by_id.setdefault(record.id, []).append(record)

    def of(self, row: Row, place: int) -> SiteSource:
        """The run of the row's seed number ``place``.

        Raises:
            RecordError: its record cannot be read, or is not available.
        """
        if row.directories and row.directories[place]:
            return _stored(Path(row.directories[place]))
        name, seed = row.runs[place], row.seeds[place]
        # Records from elsewhere may share an id; the data of the row distinguishes them.
        for record in self._by_id.get(name, []):
            if _is_of(record, row, seed):
                directory = self._place(name)
                robust, stored = (None, None) if directory is None else _outcomes(directory)
                return SiteSource(record, json_bytes(record.dump()), robust, trust_of_run(directory), stored)
        raise RecordError(f"run {name}: a row names it, but its record is not available")

    def _place(self, name: str) -> Path | None:
        """The directory of that name; None if the name leads out of the runs directory."""
        plain = Path(name).name == name and name.isprintable() and "\\" not in name and name != ".."
        return self._runs_dir / name if self._runs_dir is not None and plain else None


def _stored(directory: Path) -> SiteSource:
    path = directory / RECORD
    try:
        data = read_bounded(path)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error
    robust, stored = _outcomes(directory)
    return SiteSource(parse_record(data, str(path)), data, robust, trust_of_run(directory), stored)


def _outcomes(directory: Path) -> tuple[NDArray[np.bool_] | None, bytes | None]:
    path = directory / OUTCOMES
    try:
        return read_outcomes(path)[1], path.read_bytes()
    except (RecordError, OSError):
        return None, None


def _is_of(record: Record, row: Row, seed: int) -> bool:
    config = record.config
    own = (config["seed"], config["defense"], stated(config["params"]), config["regime"], config["plan"])
    return own == (seed, row.defense, row.params, row.regime, row.plan) and (
        record.protocol == row.protocol
        and record.environment["data"]["fingerprint"] == row.fingerprint
        and tuple(config["sequence"]) == row.sequence
    )
