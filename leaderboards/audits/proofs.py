"""The audit's check ``attack-below-certificate``: no attack may break a point that is proved."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from leaderboards.audits.following import verdict_of
from leaderboards.errors import RecordError
from leaderboards.records.certificates import Certificate, certificates_of
from leaderboards.records.entries import CLEAN, Audit, Cell, Flag, Threat
from leaderboards.records.layout import OUTCOMES
from leaderboards.records.record import Record
from leaderboards.records.store import Bools, read_all_outcomes
from leaderboards.statistics.brackets import Bracket, bracket_of, lies_inside

BELOW: Final = "attack-below-certificate"
_NAMED: Final = 10
"""The most broken points that a flag names."""

Measured = tuple[str, Threat, int, int, Bools | None]
"""An attack on the final model: text, threat, points, how many survive, and which, if that is stored."""


class Proofs(NamedTuple):
    """What the certificates beside a run say about it.

    Attributes:
        brackets: bounds of the robust accuracy for each ball.
        flags: ``attack-below-certificate``, for each attack that broke proved points.
        problems: a line for each certificate that cannot be used.
    """

    brackets: list[Bracket]
    flags: list[Flag]
    problems: list[str]

    def added_to(self, audit: Audit) -> Audit:
        """An audit of the run with the check and its flags, if there are certificates."""
        if not self.brackets:
            return audit
        flags, checks = [*audit.flags, *self.flags], list(dict.fromkeys([*audit.checks, BELOW]))
        return audit.model_copy(update={"flags": flags, "checks": checks, "verdict": verdict_of(flags)})

    def judged(self, record: Record) -> Record:
        """The record with this audit."""
        return record.model_copy(update={"audit": self.added_to(record.audit)})


NO_CERTIFICATES: Final = Proofs([], [], [])


def certified(run_dir: Path, record: Record) -> Proofs:
    """What the certificates beside a run say about it."""
    found, problems = certificates_of(run_dir, record)
    if not found:
        return Proofs([], [], problems)
    try:
        outcomes = read_all_outcomes(Path(run_dir) / OUTCOMES)
    except RecordError:
        outcomes = None
    robust = None if outcomes is None else outcomes[1][-1]
    brackets = [bracket_of(one, record, robust) for one in found]
    return Proofs(brackets, below_certificates(found, record, outcomes), problems)


def below_certificates(
    found: Sequence[Certificate], record: Record, outcomes: tuple[Bools, Bools, Bools] | None
) -> list[Flag]:
    """A flag for each attack or probe that broke points that a certificate proves.

    A point that the run has as wrong without any change counts as broken too. With outcomes, points are
    compared one by one; without them, counts are.

    Args:
        found: certificates of the record's final model.
        record: the record.
        outcomes: clean (T+1, n), robust (T+1, A, n) and probes (P, m), if they are stored.
    """
    measured = list(_measured(record, outcomes))
    return [flag for one in found for attack in measured if (flag := _below(one, attack)) is not None]


def _measured(record: Record, outcomes: tuple[Bools, Bools, Bools] | None) -> Iterator[Measured]:
    rows: list[Bools | None] = [None] * len(record.attacks)
    right: Bools | None = None
    probed: list[Bools | None] = [None] * len(record.audit.probes)
    if outcomes is not None:
        clean, robust, probes = outcomes
        right = clean[-1]
        rows = list(robust[-1]) if robust.shape[1] == len(rows) else rows
        probed = list(probes) if len(probes) == len(probed) else probed
    cells = record.last_cells()
    pairs: list[tuple[Cell | None, Bools | None]] = [(cells.get(CLEAN), right)]
    texts = [attack.text for attack in record.attacks]
    pairs += [(cells.get(text), row) for text, row in zip(texts, rows, strict=True)]
    pairs += list(zip(record.audit.probes, probed, strict=True))
    for cell, row in pairs:
        if cell is not None and cell.network is None:
            yield cell.attack, cell.threat, cell.n, cell.robust, row


def _below(one: Certificate, measured: Measured) -> Flag | None:
    text, threat, points, survive, row = measured
    if text != CLEAN and not lies_inside(threat.norm, threat.eps, (one.norm, one.eps)):
        return None
    shared = min(points, one.counts.points)
    proved = np.array(one.outcomes.certified[:shared])
    evidence = {"norm": one.norm, "eps": one.eps, "method": one.method, "attack": text}
    evidence |= {"points": shared, "certified": int(proved.sum())}
    if row is None or len(row) < shared:
        # An attack that met more points leaves at least those that are proved among the shared ones.
        if survive >= proved.sum():
            return None
        message = f"{text} leaves {survive} of {points} points, but {proved.sum()} of them are proved"
        return Flag.of(BELOW, message, **evidence, robust=survive)
    broken = np.flatnonzero(proved & ~row[:shared])
    if not len(broken):
        return None
    message = f"{text} breaks {len(broken)} of {shared} points that are proved for {one.norm} {one.eps:g}"
    evidence |= {"broken": len(broken), "first_broken": broken[:_NAMED].tolist()}
    return Flag.of(BELOW, message, **evidence)
