"""Repeats further measurements of a run's final model: its audit, size and regenerated images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from advbench.audit import Probes, audit, held_out, probe
from advbench.audit.probes import POINTS
from advbench.audit.stored import RECORDED, row_0, stored_rows
from advbench.audit.surrogates import plain_surrogate, surrogate_of
from advbench.audit.verdict import BY_PROBES, BY_TRANSFER
from advbench.evaluation.extras import Regenerates, regenerate
from advbench.external.run_record import counted
from advbench.models.cost import multiply_adds
from advbench.runs.saved import Run
from advbench.verify.report import Comparison, Report, other_counts
from advbench.verify.subject import Looked, Subject
from attacks_pool import InputError
from leaderboards import Cell, Record
from leaderboards.audits.following import FROM_OUTCOMES, older
from leaderboards.records.layout import OUTCOMES
from leaderboards.records.store import read_probe_outcomes

ROW_0, OF_RUN, PLAIN = "row 0", "run ", "plain "
"""The prefix in records for a run that transferred points were crafted on."""
COUNTS = ("forwards", "backwards", "invalid")
FAR = 0.01
"""The relative difference up to which the quality of regenerated images counts as equal."""


def repeat_audit(
    subject: Subject,
    looked: Looked,
    report: Report,
    *,
    surrogate: Run | None = None,
    seen: set[str],
    exact: bool,
) -> None:
    """Probe the final model again and compare: probes point by point, then the audit's flags.

    Args:
        subject: the run to verify.
        looked: its final model.
        report: receives the findings.
        surrogate: the run that transferred points were crafted on, if it was a run.
        seen: codes of flags that the re-evaluation of the stages has raised.
        exact: whether every bit should be equal, and therefore also the passes of probes.
    """
    probes = _probe(subject, looked, report, surrogate)
    recorded = subject.record.audit
    battery = _compare(subject, probes, report, exact=exact)
    rows = list(stored_rows(subject.run, subject.measured))
    found = audit(rows, subject.measured, stochastic=looked.declared, probes=probes)
    here = {flag.code for flag in found.flags} | seen
    there = {flag.code for flag in recorded.flags}
    # Flags that follow from outcomes are recomputed from the stored ones; if all probes are stored, a few
    # points that differ here must not decide.
    settled = set(FROM_OUTCOMES) if battery else set()
    if not probes.transferred:
        settled |= {*BY_TRANSFER, "weak-suite"}
    if older(recorded):
        # An older audit made fewer probes, and flagged every flat loss as masking.
        settled |= {*FROM_OUTCOMES, "zero-gradient"}
    if recorded.probes and not set(BY_PROBES) <= set(recorded.checks):
        report.notes.append(
            "the record's audit is older and has fewer checks: the missing ones were made here"
        )
    for code in sorted(here - there - settled):
        report.faults.append(f"audit: {code} is found here, but not in the record")
    for code in sorted(there - here - settled - set(RECORDED)):
        report.faults.append(f"audit: {code} is in the record, but not found here")
    report.checked.append("the audit, repeated")


def check_surrogate(record: Record, given: Record | None) -> None:
    """Check that the given run is the one that the record's transferred points were crafted on.

    Args:
        record: the record of the run to verify.
        given: the record of the run given with ``--surrogate``; None without it.

    Raises:
        InputError: it is another run, or the record names no run.
    """
    if given is None or (name := record.audit.surrogate) == f"{OF_RUN}{given.id}":
        return
    said = f"crafted its transferred points on {name!r}" if name else "has no transferred points"
    more = "" if name and name.startswith(OF_RUN) else "; omit --surrogate"
    raise InputError(f"the audit of run {record.id} {said}, not on {OF_RUN + given.id!r}{more}")


def _probe(subject: Subject, looked: Looked, report: Report, given: Run | None) -> Probes:
    recorded = subject.record.audit
    name, model = _surrogate(subject, looked.device, given)
    if model is None and any(cell.threat.access == "transfer" for cell in recorded.probes):
        how = " (give --surrogate)" if str(recorded.surrogate).startswith(OF_RUN) else ""
        report.not_looked_at.append(f"points transferred from {recorded.surrogate}{how}")
    # Some probes use fewer points than the others, and transferred ones may use more.
    count = max((cell.n for cell in recorded.probes if cell.threat.access != "transfer"), default=0)
    # A randomised model is expensive to query: the audit then uses a quarter of the requested points.
    points = (count * 4 if looked.stochastic else count) or POINTS
    return probe(
        looked.view,
        subject.test,
        attacks=subject.every,
        surrogate=None if model is None else model.to(looked.device),
        surrogate_name=name,
        points=points,
        transferred=subject.measured if looked.transfer else (),
        held_out=held_out(subject.run.data),
        **looked.how,
    )


def _surrogate(
    subject: Subject, device: torch.device, given: Run | None
) -> tuple[str | None, nn.Module | None]:
    """The model that transferred points were crafted on, if it is available."""
    name = subject.record.audit.surrogate
    if given is not None:
        return surrogate_of(given, subject.run.data)
    if name == ROW_0 and not subject.evaluated:
        return row_0(subject.run)
    if name is not None and name.startswith(PLAIN) and subject.evaluated:
        again = plain_surrogate(subject.run.data, subject.seed, device)
        if again[0] == name:
            return again
    return name, None


def _compare(subject: Subject, probes: Probes, report: Report, *, exact: bool) -> bool:
    """Compare the probes with the stored ones; return whether the record has all probes made here."""
    stored = read_probe_outcomes(subject.run.path / OUTCOMES)
    cells = subject.record.audit.probes
    places = {_place(cell): number for number, cell in enumerate(cells)}
    whole = bool(len(stored))
    for cell, outcome in zip(probes.cells, probes.robust, strict=True):
        number = places.get(_place(cell))
        if number is None or not len(stored):
            whole = False
            continue
        count = min(cell.n, cells[number].n)
        comparison = Comparison.of(
            cell.stage,
            cell.attack,
            stored[number][:count],
            outcome[:count],
            probe=True,
            transferred=cell.threat.access == "transfer",
        )
        report.comparisons.append(comparison)
        if exact and cell.n == cells[number].n:
            report.faults += other_counts(comparison.label, cells[number], dict(cell), COUNTS)
    return whole


def _place(cell: Cell) -> tuple[str, str, str | None]:
    """A key that identifies a probe."""
    return cell.attack, cell.threat.access, cell.network


def check_size(subject: Subject, looked: Looked) -> Iterator[str]:
    """A line if the final model's parameters or multiply-adds, which tables compare, differ."""
    image = subject.run.data.test.images[:1]
    parameters = sum(parameter.numel() for parameter in looked.module.parameters())
    count, place = (counted, image.device) if subject.evaluated else (multiply_adds, looked.device)
    adds = count(looked.module, image.to(place))
    cost = subject.record.cost
    if (parameters, adds) != (cost.parameters, cost.multiply_adds):
        yield (
            f"cost: {cost.parameters} parameters and {cost.multiply_adds} multiply-adds, "
            f"the model has {parameters} and {adds}"
        )


def check_regenerated(subject: Subject, looked: Looked) -> Iterator[str]:
    """A line for each different quality of regenerated images, if the defense makes any."""
    found: dict[str, float | None] = {}
    if isinstance(looked.module, Regenerates):
        found = regenerate(
            looked.module,  # type: ignore[arg-type]
            subject.test,
            subject.attacks["seen"],
            seed=subject.seed,
            device=looked.device,
        ).metrics
    claimed = {
        key: value
        for key, value in subject.record.metrics.items()
        if key.startswith(("regenerated_", "adversarial_"))
    }
    for key in sorted({*found, *claimed}):
        one, other = claimed.get(key), found.get(key)
        same = one is other if one is None or other is None else abs(one - other) <= FAR * abs(other)
        if not same:
            yield f"metrics: {key} is {one}, the images regenerated here give {other}"
