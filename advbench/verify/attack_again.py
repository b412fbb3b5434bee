"""``advbench verify``: attacks the saved stages again on a sample of points and compares each point."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advbench.config.options import MOST_THREADS
from advbench.evaluation.evaluate import measure_some
from advbench.runs.saved import Run
from advbench.runtime.device import choose_device, reproducible, undisturbed
from advbench.runtime.timeouts import limited_verification
from advbench.verify.audit_again import check_regenerated, check_size, check_surrogate, repeat_audit
from advbench.verify.claims import (
    OF_THE_MODEL,
    ROUTED,
    check_claims,
    check_labels,
    leave_metrics,
    without_weights,
)
from advbench.verify.memorised import check_memorised
from advbench.verify.report import Comparison, Report, differences, judge, machine_of, other_counts
from advbench.verify.sample import Asked, Sample, choose
from advbench.verify.siblings import check_siblings
from advbench.verify.subject import Looked, Subject, subject_of
from attacks_pool import InputError
from leaderboards import CLEAN, read_outcomes
from leaderboards.records.layout import OUTCOMES

COUNTED = ("forwards", "backwards", "invalid", "abstained")
"""The counts of each block in addition to outcomes."""
Told = Callable[[str], None]
"""Called with each comparison of an attack on a stage."""


@undisturbed()
def verify_run(
    run: Run,
    asked: Asked | None = None,
    *,
    surrogate: Run | None = None,
    weights: Path | None = None,
    told: Told | None = None,
    timeout: float | None = None,
) -> Report:
    """Confirm or refute a run: check stored data for consistency, then its models on a sample of points.

    Nothing is written. A run whose stored parts contradict each other is refuted before any model is run.

    Args:
        run: a finished run or evaluation, with its weights.
        asked: the extent; by default every stage and attack, with 500 points of each.
        surrogate: the run that the audit's transferred points were crafted on, if it was a run.
        weights: for an evaluated model, its file of weights if the run has no copy.
        told: called with the progress.
        timeout: seconds that the whole verification may take.

    Raises:
        InputError: it cannot be verified here, or not in time: weights, data or code are missing, or the run
            lacks the requested sample.
        RecordError: the record cannot be read.
    """
    began = time.perf_counter()
    report = Report(run.record.id, run.path, "re-evaluated")
    with limited_verification(timeout, f"verifying run {run.record.id}"):
        _verify(run, asked or Asked(), report, surrogate, weights, told or (lambda _: None))
    report.seconds = time.perf_counter() - began
    return report


def _verify(
    run: Run, asked: Asked, report: Report, surrogate: Run | None, weights: Path | None, told: Told
) -> None:
    check_surrogate(run.record, None if surrogate is None else surrogate.record)
    subject = subject_of(run, weights=weights)
    check_claims(subject, report)
    if report.confirmed:
        if without_weights(subject):
            raise InputError(
                f"run {run.record.id} is stored without its weights, so there is nothing to attack again: "
                "advbench verify --retrain trains it again"
            )
        check_labels(subject, report)
        report.faults += check_siblings(subject)
    if report.confirmed:
        device = device_of(run, asked.device, report)
        with reproducible(threads_of(run, asked.threads)):
            report.machine = machine_of(device, run.data)
            _remeasure(subject, asked, device, report, surrogate, told)
    else:
        report.not_looked_at.append("every model: what is stored contradicts itself already")


def device_of(run: Run, asked: str | None, report: Report) -> torch.device:
    """The requested device, or the record's kind of device, or the CPU if that is missing."""
    if asked is not None:
        return choose_device(asked)
    kind = str(run.record.environment["device"]).partition(" ")[0]
    try:
        return choose_device(kind)
    except InputError:
        report.notes.append(f"the record was made on {kind!r}, which is not here: this is the CPU")
        return torch.device("cpu")


def threads_of(run: Run, asked: int | None) -> int:
    """The requested number of CPU threads, or the record's.

    Raises:
        InputError: the record's value is not a number of threads.
    """
    found: Any = run.record.environment["threads"] if asked is None else asked
    if type(found) is not int or not 1 <= found <= MOST_THREADS:
        raise InputError(f"run {run.record.id}: {found!r} is not a number of threads: give --threads")
    return found


def _remeasure(
    subject: Subject, asked: Asked, device: torch.device, report: Report, surrogate: Run | None, told: Told
) -> None:
    sample = choose(subject, asked)
    report.sample = sample.tree()
    last = subject.record.stages[-1].index
    other = differences(subject.record, report.machine)
    flags: set[str] = set()
    for stage in sample.stages:
        looked = subject.look(stage, device)
        flags |= _compare_stage(subject, looked, sample, report, told, exact=not other)
        if stage == last:
            check_memorised(subject, looked, report, sample.seed)
            report.faults += check_size(subject, looked)
            report.faults += check_regenerated(subject, looked)
            repeat_audit(subject, looked, report, surrogate=surrogate, seen=flags, exact=not other)
    # Regenerated images belong to the last stage, and are checked with it.
    leave_metrics(subject, report, ROUTED if last in sample.stages else OF_THE_MODEL)
    if last not in sample.stages:
        report.not_looked_at.append(
            "the audit, parameters, multiply-adds and whether test points were learnt: of the last stage"
        )
    report.faults += judge(report.comparisons, same_machine=not other)
    _say_what_was_not(subject, sample, report, other)


def _compare_stage(
    subject: Subject, looked: Looked, sample: Sample, report: Report, told: Told, *, exact: bool
) -> set[str]:
    """Attack one stage again; return the codes of flags that this raises.

    Passes depend on every bit: with ``exact``, they are compared for each cell that was measured completely.
    """
    stage = looked.stage
    clean, robust = read_outcomes(subject.run.path / OUTCOMES)
    row = [entry.index for entry in subject.record.stages].index(stage)
    limits = {CLEAN: len(subject.test), **{attack.text: limit for attack, limit in subject.measured}}
    recorded = dict(zip(limits, (clean[row], *robust[row]), strict=True))
    cells = {cell.attack: cell for cell in subject.record.cells if cell.stage == stage}
    flags: set[str] = set()
    # Attack the points that are correct in the record, so that a difference here changes no other draws.
    pieces = measure_some(
        looked.view,
        subject.test,
        subject.measured,
        clean[row],
        lambda shard: sample.wants(stage, shard),
        **looked.how,
    )
    for text, group in groupby(pieces, lambda measured: measured[0].text):
        here, looked_at = np.zeros((2, limits[text]), dtype=bool)
        counts: Counter[str] = Counter()
        for shard, piece in group:
            here[shard.block] = piece.right
            looked_at[shard.block] = True
            counts.update({name: getattr(piece, name) or 0 for name in COUNTED})
            earned = {"nan-logits": piece.not_a_number, "invalid-examples": piece.invalid}
            flags |= {code for code, count in earned.items() if count}
            flags |= {"changed-model"} if piece.changed else set()
        comparison = Comparison.of(stage, text, recorded[text][: limits[text]], here, looked_at)
        report.comparisons.append(comparison)
        told(comparison.line())
        if exact and looked_at.all() and text in cells:
            report.faults += other_counts(comparison.label, cells[text], counts, COUNTED)
    return flags


def _say_what_was_not(subject: Subject, sample: Sample, report: Report, other: list[str]) -> None:
    """Report what the verdict does not cover, and whether this environment should give equal bits."""
    left_out = sample.left_out(subject)
    report.complete = not left_out
    report.not_looked_at += left_out
    measured = [one for one in report.comparisons if not one.probe]
    parts = [one for one in measured if one.compared < one.points]
    if parts:
        looked, total = sum(one.compared for one in parts), sum(one.points for one in parts)
        report.not_looked_at.append(f"{total - looked} of {total} outcomes of the stages and attacks sampled")
    if not subject.evaluated:
        report.not_looked_at.append("how the weights were trained: advbench verify --retrain trains again")
    if other:
        report.not_looked_at.append("passes, which depend on every bit, except for their upper bounds")
    elif parts:
        report.not_looked_at.append("passes of cells that were measured in part")
    report.not_looked_at.append("how long everything took")
    if other:
        report.notes.append(f"not the record's environment, bits may differ: {'; '.join(other)}")
    else:
        report.notes.append("this is the record's environment: every outcome should be the same")
    if not subject.evaluated:
        report.notes.append("passes of training were not checked: only training again counts them")
