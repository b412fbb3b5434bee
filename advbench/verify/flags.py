"""Whether an audit's verdict follows from its flags, and these from stored outcomes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from advbench.audit.comparisons import OVERCLAIMED, Probed
from advbench.audit.competence import UNTAUGHT
from advbench.audit.verdict import FROM_OUTCOMES, from_outcomes, older, verdict_of
from advbench.verify.subject import Subject
from attacks_pool import Attack, InputError, pool
from attacks_pool.sequences import parse_attacks
from leaderboards import Flag, read_outcomes
from leaderboards.records.layout import OUTCOMES
from leaderboards.records.store import read_probe_outcomes


def check_audit(subject: Subject) -> Iterator[str]:
    """The verdict follows from the flags, and what flags can follow from stored outcomes does."""
    record = subject.record
    audit = record.audit
    if audit.verdict != (verdict := verdict_of(audit.flags)):
        yield f"audit: {audit.verdict}, its flags say {verdict}"
    broken = any(cell.invalid for cell in (*record.cells, *audit.probes))
    if broken != any(flag.code == "invalid-examples" for flag in audit.flags):
        yield f"audit: invalid-examples is {'not ' if broken else ''}flagged, against the cells"
    if (stored := compared(subject)) is None:
        # Kept by no version of this suite that made probes; the audit is repeated on the model.
        return
    claimed = [flag for flag in audit.flags if flag.code in FROM_OUTCOMES]
    # No comparison is made on a model that has learned nothing.
    untaught = any(flag.code in UNTAUGHT for flag in audit.flags)
    # An older audit does not say by how much a weak suite overclaims.
    unsaid = {"p", OVERCLAIMED} if older(audit) else {"p"}
    found = [] if untaught else from_outcomes(*stored, older=older(audit))
    yield from _flags(found, claimed, unsaid)


def compared(subject: Subject) -> tuple[list[Probed], int] | None:
    """What the audit compared, from stored outcomes, and how many points that it attacked are right clean.

    None where the outcomes of the record's probes are not there.
    """
    audit = subject.record.audit
    probes = read_probe_outcomes(subject.run.path / OUTCOMES)
    if audit.probes and not probes.size:
        return None
    _, robust = read_outcomes(subject.run.path / OUTCOMES)
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
    own = [cell for cell in audit.probes if cell.threat.access != "transfer"]
    return measured, max(own, key=lambda cell: cell.n).clean_correct if own else 0


def _flags(found: list[Flag], claimed: list[Flag], unsaid: set[str]) -> Iterator[str]:
    here, there = Counter(flag.code for flag in found), Counter(flag.code for flag in claimed)
    for code in sorted({*here, *there}):
        if here[code] != there[code]:
            yield f"audit: {there[code]} flags {code}, the stored outcomes give {here[code]}"
    if here != there:
        return
    for one, other in zip(found, claimed, strict=True):
        for key, value in one.evidence.items():
            said = other.evidence.get(key)
            same = (
                equal(said, value) if isinstance(value, float) and isinstance(said, float) else said == value
            )
            if not same and key not in unsaid:
                yield f"audit: {one.code}: {key} is {said}, the stored outcomes give {value}"


def _bound(text: str) -> Attack:
    found = parse_attacks(text)
    if len(found) != 1:
        raise InputError(f"{text!r} is not one attack")
    return pool.bind(*found[0])


def equal(one: float | None, other: float | None) -> bool:
    """Whether two numbers are the same but for the last digits; None is only None."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
