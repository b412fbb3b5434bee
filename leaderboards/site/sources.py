"""The runs of a row: read from their directories, or from records in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaderboards.audits.proofs import NO_CERTIFICATES, Proofs, certified
from leaderboards.boards.row import Row
from leaderboards.errors import RecordError, os_errors
from leaderboards.records.layout import OUTCOMES, RECORD
from leaderboards.records.limits import read_bounded
from leaderboards.records.record import Record, parse_record
from leaderboards.records.store import json_bytes, read_outcomes
from leaderboards.records.trust import trust_of
from leaderboards.statistics.results import stated


@dataclass(frozen=True)
class SiteSource:
    """A run: record, the bytes of ``record.json``, trust, outcomes (T+1, A, n) if available.

    ``outcomes`` holds the bytes of ``outcomes.npz`` if ``robust`` was read from such a file, ``proofs`` what
    the certificates say.
    """

    record: Record
    data: bytes
    trust: str = "self-reported"
    robust: NDArray[np.bool_] | None = None
    outcomes: bytes | None = None
    proofs: Proofs = NO_CERTIFICATES


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
                data, directory = json_bytes(record.dump()), self._place(name)
                return SiteSource(record, data) if directory is None else _source(record, data, directory)
        raise RecordError(f"run {name}: a row names it, but its record is not available")

    def _place(self, name: str) -> Path | None:
        """The directory of that name; None if the name leads out of the runs directory."""
        plain = Path(name).name == name and name.isprintable() and "\\" not in name and name != ".."
        return self._runs_dir / name if self._runs_dir is not None and plain else None


def _stored(directory: Path) -> SiteSource:
    path = directory / RECORD
    with os_errors(f"cannot read {path}"):
        data = read_bounded(path)
    return _source(parse_record(data, str(path)), data, directory)


def _source(record: Record, data: bytes, directory: Path) -> SiteSource:
    path, trust, proofs = directory / OUTCOMES, trust_of(directory), certified(directory, record)
    try:
        return SiteSource(record, data, trust, read_outcomes(path)[1], path.read_bytes(), proofs)
    except (RecordError, OSError):
        return SiteSource(record, data, trust, proofs=proofs)


def _is_of(record: Record, row: Row, seed: int) -> bool:
    config = record.config
    own = (config["seed"], config["defense"], stated(config["params"]), config["regime"], config["plan"])
    return own == (seed, row.defense, row.params, row.regime, row.plan) and (
        record.protocol == row.protocol
        and record.environment["data"]["fingerprint"] == row.fingerprint
        and tuple(config["sequence"]) == row.sequence
    )
