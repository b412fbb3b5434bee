"""Whether a record fits the outcomes stored beside it, as far as that shows without a model."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboards.audits.comparisons import OVERCLAIM, OVERCLAIMED, Probed, compare, knobs_of
from leaderboards.audits.following import FROM_OUTCOMES, UNTAUGHT, from_outcomes, older, verdict_of
from leaderboards.errors import RecordError
from leaderboards.records.checking import outcome_faults, probe_faults
from leaderboards.records.entries import CLEAN, Access, Audit, Cell, Flag
from leaderboards.records.layout import EVALUATED, OUTCOMES
from leaderboards.records.record import Record
from leaderboards.records.store import Bools, read_all_outcomes
from leaderboards.statistics.measured import eval_metrics, metrics_of

SINGLE_STEP_PROBE = "fgsm"
"""The one probe of the audit that takes a single step."""
BY_PROBES = ("accuracy-rises-with-eps", "unbounded-attack-fails", "cliff")
"""Checks that compare probes with one another."""
MORE = ("steps", "restarts")
"""Knobs of which a larger value makes a search no weaker; the size of a step may follow from them."""


@dataclass(frozen=True)
class Recorded:
    """An attack as a record describes it; its own metadata."""

    text: str
    name: str
    eps: float
    knobs: Mapping[str, Any]
    norm: str | None
    family: str
    access: str

    @property
    def info(self) -> Recorded:
        """Its metadata."""
        return self


def contradiction_of(run_dir: Path, record: Record) -> str:
    """The first line of `contradictions` for a run where it lies; empty where there is none.

    Outcomes that are missing or damaged contradict nothing: whoever needs them finds that they are not there.
    """
    try:
        outcomes = read_all_outcomes(Path(run_dir) / OUTCOMES)
    except RecordError:
        return ""
    return first_contradiction(record, *outcomes)


def first_contradiction(record: Record, clean: Bools, robust: Bools, probes: Bools) -> str:
    """The first line of `contradictions`; empty where there is none."""
    try:
        return next(contradictions(record, clean, robust, probes), "")
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # A stranger's record may lack what every run of this suite writes.
        return f"its audit cannot be recomputed from its outcomes ({' '.join(str(error).split())[:200]})"


def contradictions(record: Record, clean: Bools, robust: Bools, probes: Bools) -> Iterator[str]:
    """One line for each number of a record that its outcomes do not give.

    Counts, metrics, sums by class, the audit's flags as far as they follow from outcomes, and a verdict that
    does not follow from the flags. Whoever makes all of these fit one another, or leaves the audit out, fools
    this, but not ``advbench verify``.

    Args:
        record: the record.
        clean: (T+1, n) right clean.
        robust: (T+1, A, n) right clean and after each attack.
        probes: (P, m) what survives each of the audit's probes; (0, 0) where none is kept.

    Raises:
        Exception: whatever a record answers with that lacks what every run of this suite writes.
    """
    if not record.attacks or not set(FROM_OUTCOMES) & set(record.audit.checks):
        # An audit that compared nothing claims nothing about outcomes; boards look at what they rank by.
        return
    faults = [*outcome_faults(record, clean, robust), *probe_faults(record, probes)]
    yield from faults
    if faults:
        return
    yield from _threats(record)
    yield from _metrics(record, clean, robust)
    yield from _classes(record)
    stored = recorded(record, robust, probes)
    yield from audit_faults(record, stored)
    if stored is None:
        yield f"audit: {len(record.audit.probes)} probes, the outcomes of none are kept"
        return
    if not record.audit.probes and (named := [code for code in BY_PROBES if code in record.audit.checks]):
        yield f"audit: it says that it looked for {named[0]}, which takes probes, and has none"
    yield from _less_with_more(record.audit, [one for one in stored[0] if not one.probe])


def audit_faults(record: Record, stored: tuple[Sequence[Probed], int] | None) -> Iterator[str]:
    """The verdict follows from the flags, and what flags can follow from stored outcomes does.

    Args:
        record: the record.
        stored: what `from_outcomes` compares; None where the outcomes of the audit's probes are not kept.
    """
    audit = record.audit
    if audit.verdict != (verdict := verdict_of(audit.flags)):
        yield f"audit: {audit.verdict}, its flags say {verdict}"
    broken = any(cell.invalid for cell in (*record.cells, *audit.probes))
    if broken != any(flag.code == "invalid-examples" for flag in audit.flags):
        yield f"audit: invalid-examples is {'not ' if broken else ''}flagged, against the cells"
    if stored is None:
        return
    claimed = [flag for flag in audit.flags if flag.code in FROM_OUTCOMES]
    # No comparison is made on a model that has learned nothing.
    untaught = any(flag.code in UNTAUGHT for flag in audit.flags)
    # An older audit does not say by how much a weak suite overclaims.
    unsaid = {"p", OVERCLAIMED} if older(audit) else {"p"}
    found = [] if untaught else from_outcomes(*stored, older=older(audit))
    yield from _flags(found, claimed, unsaid)


def recorded(record: Record, robust: Bools, probes: Bools) -> tuple[list[Probed], int] | None:
    """What `from_outcomes` compares, with the attacks as the record describes them.

    None where the outcomes of the record's probes are not kept.
    """
    cells = record.audit.probes
    if cells and not probes.size:
        return None
    counts = {cell.attack: cell.n for cell in record.cells}
    own = [
        Recorded(one.text, one.name, one.eps or 0.0, _knobs(one.text), one.norm, one.family, one.access)
        for one in record.attacks
    ]
    labels, families = record.audit.networks, {one.text: one.family for one in own}
    measured = [
        Probed(attack, outcome, counts[attack.text], attack.access, network=labels.get(attack.text))
        for attack, outcome in zip(own, robust[-1], strict=True)
    ]
    measured += [
        Probed(_probe(cell, families), outcome, cell.n, cell.threat.access, probe=True, network=cell.network)
        for cell, outcome in zip(cells, probes, strict=True)
    ]
    return measured, right_clean(record.audit)


def _probe(cell: Cell, families: Mapping[str, str]) -> Recorded:
    name = cell.attack.partition("=")[0].rpartition(":")[0] or cell.attack
    family = families.get(cell.attack, "single-step" if name == SINGLE_STEP_PROBE else "")
    threat = cell.threat
    return Recorded(
        cell.attack, name, threat.eps or 0.0, _knobs(cell.attack), threat.norm, family, threat.access
    )


@functools.lru_cache(maxsize=4096)
def _knobs(text: str) -> Mapping[str, Any]:
    return {key: int(value) if value.isdecimal() else value for key, value in knobs_of(text).items()}


def right_clean(audit: Audit) -> int:
    """How many of the points that probes attacked are right clean."""
    own = [cell for cell in audit.probes if cell.threat.access != "transfer"]
    return max(own, key=lambda cell: cell.n).clean_correct if own else 0


def _threats(record: Record) -> Iterator[str]:
    """Cells are of the attacks that the record lists."""
    entries: dict[str, tuple[str | None, float | None, Access]] = {
        one.text: (one.norm, one.eps, one.access) for one in record.attacks
    }
    for cell in record.cells:
        threat = (cell.threat.norm, cell.threat.eps, cell.threat.access)
        if cell.attack != CLEAN and threat != (meant := entries[cell.attack]):
            yield f"stage {cell.stage}, {cell.attack}: its threat {threat} is not the attack's {meant}"
            return


def _metrics(record: Record, clean: Bools, robust: Bools) -> Iterator[str]:
    counts = {cell.attack: cell.n for cell in record.cells}
    points = [counts[one.text] for one in record.attacks]
    roles = [one.role for one in record.attacks]
    if record.regime == EVALUATED:
        found = eval_metrics(clean[-1], robust[-1], points)
    else:
        found = metrics_of(
            clean,
            robust,
            regime=record.regime,
            seen=roles.count("seen"),
            unseen=roles.count("unseen"),
            points=points,
        )
    for key, value in found.items():
        if not equal(said := record.metrics.get(key), value):
            yield f"metrics: {key} is {said}, the stored outcomes give {value}"


def _classes(record: Record) -> Iterator[str]:
    """Counts by class add up; which point is of which class only the labels tell."""
    rows, last = record.per_class, record.stages[-1].index
    for cell in record.cells if rows else ():
        if cell.stage == last:
            key = cell.attack
            total = sum(row.clean_correct if key == CLEAN else row.robust.get(key, 0) for row in rows)
            if total != cell.robust:
                yield f"per_class: {key} adds up to {total}, the last stage has {cell.robust}"


def _less_with_more(audit: Audit, own: Sequence[Probed]) -> Iterator[str]:
    """Of a model that is called ok: no search does far worse with more steps, nor an ensemble than others."""
    if audit.verdict != "ok":
        return
    for more, less in itertools.permutations(own, 2):
        if not (_searches_more(more, less) and more.network == less.network):
            continue
        flag = compare("", less, more, than="{}")
        if flag and float(flag.evidence["difference"]) >= OVERCLAIM:
            shares = [100 * float(one.robust[: one.points].mean()) for one in (more, less)]
            yield (
                f"audit: ok, though {more.attack.text} leaves {shares[0]:.1f} % and {less.attack.text}, "
                f"which searches less, {shares[1]:.1f} %"
            )


def _searches_more(more: Probed, less: Probed) -> bool:
    one, other = more.attack, less.attack
    if one.info.norm is None or one.info.norm != other.info.norm:
        return False
    if one.info.family == "ensemble":
        return other.info.family != "ensemble" and one.eps >= other.eps
    if one.name != other.name:
        return False
    rest = [
        {key: value for key, value in attack.knobs.items() if key not in (*MORE, "step_size")}
        for attack in (one, other)
    ]
    counts = [[attack.knobs.get(key, 0) for key in MORE] for attack in (one, other)]
    return rest[0] == rest[1] and all(map(_no_fewer, *counts))


def _no_fewer(one: object, other: object) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one >= other


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


def equal(one: float | None, other: float | None) -> bool:
    """Whether two numbers are the same but for the last digits; None is only None."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
