"""Checks that an audit's verdict follows from its flags, and the flags from stored outcomes."""

from __future__ import annotations

from collections.abc import Iterator

from advbench.verify.subject import Subject
from attacks_pool import Attack, InputError, pool
from attacks_pool.sequences import parse_attacks
from leaderboards import Cell
from leaderboards.audits import contradictions
from leaderboards.audits.comparisons import Probed
from leaderboards.records.layout import OUTCOMES
from leaderboards.records.store import read_all_outcomes


def check_audit(subject: Subject) -> Iterator[str]:
    """A line for each flag that stored outcomes contradict, and for a verdict that the flags contradict.

    The metadata of attacks is the pool's, not the record's.
    """
    # The outcomes of probes may be missing: the audit is then repeated on the model.
    return contradictions.audit_faults(subject.record, compared(subject))


def compared(subject: Subject) -> tuple[list[Probed], int] | None:
    """The attacks that the audit compared, from stored outcomes, and how many of the points are right clean.

    None if the outcomes of the record's probes are missing.
    """
    _, robust, probes = read_all_outcomes(subject.run.path / OUTCOMES)
    return contradictions.compared(subject.record, robust, probes, subject.every, _bound)


def _bound(cell: Cell) -> Attack:
    found = parse_attacks(cell.attack)
    if len(found) != 1:
        raise InputError(f"{cell.attack!r} is not one attack")
    return pool.bind(*found[0])
