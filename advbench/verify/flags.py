"""Checks that an audit's verdict follows from its flags, and the flags from stored outcomes."""

from __future__ import annotations

from collections.abc import Iterator

from advbench.verify.subject import Subject
from attacks_pool import Attack, InputError, pool
from attacks_pool.sequences import parse_attacks
from leaderboards.audits.comparisons import Probed
from leaderboards.audits.contradictions import audit_faults, right_clean
from leaderboards.records.layout import OUTCOMES
from leaderboards.records.store import read_all_outcomes


def check_audit(subject: Subject) -> Iterator[str]:
    """A line for each flag that stored outcomes contradict, and for a verdict that the flags contradict.

    The metadata of attacks is the pool's, not the record's.
    """
    # The outcomes of probes may be missing: the audit is then repeated on the model.
    return audit_faults(subject.record, compared(subject))


def compared(subject: Subject) -> tuple[list[Probed], int] | None:
    """The attacks that the audit compared, from stored outcomes, and how many of the points are right clean.

    None if the outcomes of the record's probes are missing.
    """
    audit = subject.record.audit
    _, robust, probes = read_all_outcomes(subject.run.path / OUTCOMES)
    if audit.probes and not probes.size:
        return None
    counts = {cell.attack: cell.n for cell in subject.record.cells}
    measured = [
        Probed(
            attack,
            outcome,
            counts[attack.text],
            attack.info.access,
            network=audit.networks.get(attack.text),
        )
        for attack, outcome in zip(subject.every, robust[-1], strict=True)
    ]
    measured += [
        Probed(_bound(cell.attack), outcome, cell.n, cell.threat.access, probe=True, network=cell.network)
        for cell, outcome in zip(audit.probes, probes, strict=True)
    ]
    return measured, right_clean(audit)


def _bound(text: str) -> Attack:
    found = parse_attacks(text)
    if len(found) != 1:
        raise InputError(f"{text!r} is not one attack")
    return pool.bind(*found[0])
