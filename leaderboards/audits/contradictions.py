"""Checks of a record against the outcomes stored beside it, as far as they need no model."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboards.audits.comparisons import OVERCLAIM, OVERCLAIMED, Probed, ProbedAttack, compare
from leaderboards.audits.following import FROM_OUTCOMES, UNTAUGHT, from_outcomes, older, verdict_of
from leaderboards.errors import RecordError
from leaderboards.records.checking import outcome_faults, probe_faults
from leaderboards.records.entries import CLEAN, Access, Audit, Cell, Flag
from leaderboards.records.layout import EVALUATED, OUTCOMES
from leaderboards.records.record import Record
from leaderboards.records.store import Bools, read_all_outcomes
from leaderboards.statistics.measured import eval_metrics, metrics_of
from leaderboards.statistics.naming import knobs_of

SINGLE_STEP_PROBE = "fgsm"
"""The audit's only probe that takes a single step."""
BY_PROBES = ("accuracy-rises-with-eps", "unbounded-attack-fails", "cliff")
"""Checks that compare probes with each other."""
MORE = ("steps", "restarts")
"""Knobs whose larger values make a search no weaker; the step size may depend on them."""


@dataclass(frozen=True)
class Recorded:
    """An attack as a record describes it; it serves as its own metadata."""

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
    """The first line of `contradictions` for the run in ``run_dir``; empty if there is none.

    Missing or damaged outcomes contradict nothing: code that needs them reports them itself.
    """
    try:
        outcomes = read_all_outcomes(Path(run_dir) / OUTCOMES)
    except RecordError:
        return ""
    return first_contradiction(record, *outcomes)


def first_contradiction(record: Record, clean: Bools, robust: Bools, probes: Bools) -> str:
    """The first line of `contradictions`; empty if there is none."""
    try:
        return next(contradictions(record, clean, robust, probes), "")
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # A record from elsewhere may lack fields that every run of this suite writes.
        return f"its audit cannot be recomputed from its outcomes ({' '.join(str(error).split())[:200]})"


def contradictions(record: Record, clean: Bools, robust: Bools, probes: Bools) -> Iterator[str]:
    """One line for each number of a record that does not follow from its outcomes.

    Checked are counts, metrics, sums by class, the audit's flags as far as they follow from outcomes, and
    that the verdict follows from the flags. A forger who makes all of these consistent, or leaves the audit
    out, passes this check, but not ``advbench verify``.

    Args:
        record: the record.
        clean: (T+1, n) whether each point is classified correctly when clean.
        robust: (T+1, A, n) whether it is correct both clean and after each attack.
        probes: (P, m) which points survive each of the audit's probes; (0, 0) if none is stored.

    Raises:
        Exception: a record that lacks fields that every run of this suite writes raises various errors.
    """
    if not record.attacks or not set(FROM_OUTCOMES) & set(record.audit.checks):
        # An audit that compared nothing claims nothing about outcomes; boards check what they rank by.
        return
    faults = [*outcome_faults(record, clean, robust), *probe_faults(record, probes)]
    yield from faults
    if faults:
        return
    yield from threat_faults(record)
    for key, value in metrics_given(record, clean, robust).items():
        if not equal(said := record.metrics.get(key), value):
            yield f"metrics: {key} is {said}, the stored outcomes give {value}"
    yield from class_faults(record)
    stored = recorded(record, robust, probes)
    yield from audit_faults(record, stored)
    if stored is None:
        yield f"audit: it has {len(record.audit.probes)} probes, but their outcomes are not stored"
        return
    if not record.audit.probes and (named := [code for code in BY_PROBES if code in record.audit.checks]):
        yield f"audit: it lists the check {named[0]}, which needs probes, but has none"
    yield from _less_with_more(record.audit, [one for one in stored[0] if not one.probe])


def audit_faults(record: Record, stored: tuple[Sequence[Probed], int] | None) -> Iterator[str]:
    """One line for each flag that the stored outcomes contradict, and for a verdict that flags contradict.

    Args:
        record: the record.
        stored: the arguments of `from_outcomes`; None if the outcomes of the audit's probes are not stored.
    """
    audit = record.audit
    if audit.verdict != (verdict := verdict_of(audit.flags)):
        yield f"audit: the verdict is {audit.verdict}, its flags give {verdict}"
    broken = any(cell.invalid for cell in (*record.cells, *audit.probes))
    if broken != any(flag.code == "invalid-examples" for flag in audit.flags):
        yield f"audit: invalid-examples is {'not ' if broken else ''}flagged, which the cells contradict"
    if stored is None:
        return
    claimed = [flag for flag in audit.flags if flag.code in FROM_OUTCOMES]
    # The audit compares no attacks on a model that has learned nothing.
    untaught = any(flag.code in UNTAUGHT for flag in audit.flags)
    # An older audit does not record by how much a weak suite overclaims.
    unsaid = {"p", OVERCLAIMED} if older(audit) else {"p"}
    found = [] if untaught else from_outcomes(*stored, older=older(audit))
    yield from _flags(found, claimed, unsaid)


def recorded(record: Record, robust: Bools, probes: Bools) -> tuple[list[Probed], int] | None:
    """The arguments of `from_outcomes`, with the attacks as the record describes them.

    None if the outcomes of the record's probes are not stored.
    """
    own = [
        Recorded(one.text, one.name, one.eps or 0.0, _knobs(one.text), one.norm, one.family, one.access)
        for one in record.attacks
    ]
    families = {one.text: one.family for one in own}
    return compared(record, robust, probes, own, lambda cell: _probe(cell, families))


def compared(
    record: Record,
    robust: Bools,
    probes: Bools,
    own: Sequence[ProbedAttack],
    described: Callable[[Cell], ProbedAttack],
) -> tuple[list[Probed], int] | None:
    """The arguments of `from_outcomes`; None if the outcomes of the record's probes are not stored.

    Args:
        record, robust, probes: see `contradictions`.
        own: the run's attacks.
        described: gives the attack of a probe's cell.
    """
    cells, labels = record.audit.probes, record.audit.networks
    if cells and not probes.size:
        return None
    counts = {cell.attack: cell.n for cell in record.cells}
    measured = [
        Probed(attack, outcome, counts[attack.text], attack.info.access, network=labels.get(attack.text))
        for attack, outcome in zip(own, robust[-1], strict=True)
    ]
    measured += [
        Probed(described(cell), outcome, cell.n, cell.threat.access, probe=True, network=cell.network)
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
    """How many of the points that probes attacked are classified correctly when clean."""
    own = [cell for cell in audit.probes if cell.threat.access != "transfer"]
    return max(own, key=lambda cell: cell.n).clean_correct if own else 0


def threat_faults(record: Record) -> Iterator[str]:
    """One line for each cell whose threat differs from that of the listed attack."""
    entries: dict[str, tuple[str | None, float | None, Access]] = {CLEAN: (None, None, "none")}
    entries |= {one.text: (one.norm, one.eps, one.access) for one in record.attacks}
    for cell in record.cells:
        threat = (cell.threat.norm, cell.threat.eps, cell.threat.access)
        if threat != (meant := entries[cell.attack]):
            yield f"stage {cell.stage}, {cell.attack}: its threat {threat} is not the attack's {meant}"


def metrics_given(record: Record, clean: Bools, robust: Bools) -> dict[str, float | None]:
    """The metrics that follow from a record's outcomes."""
    counts = {cell.attack: cell.n for cell in record.cells}
    points = [counts[one.text] for one in record.attacks]
    roles = [one.role for one in record.attacks]
    if record.regime == EVALUATED:
        return eval_metrics(clean[-1], robust[-1], points)
    seen, unseen = roles.count("seen"), roles.count("unseen")
    return metrics_of(clean, robust, regime=record.regime, seen=seen, unseen=unseen, points=points)


def class_faults(record: Record) -> Iterator[str]:
    """One line for each count by class that does not add up (checking more would need labels)."""
    rows, last = record.per_class, record.stages[-1].index
    for cell in record.cells if rows else ():
        if cell.stage == last:
            key = cell.attack
            total = sum(row.clean_correct if key == CLEAN else row.robust.get(key, 0) for row in rows)
            if total != cell.robust:
                yield f"per_class: {key} adds up to {total}, the last stage has {cell.robust}"


def _less_with_more(audit: Audit, own: Sequence[Probed]) -> Iterator[str]:
    """In an ok audit, one line for each larger search or ensemble that does far worse than a smaller one."""
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
    """Whether two numbers are equal up to rounding; None equals only None."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
