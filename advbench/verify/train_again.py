"""``advbench verify --retrain``: repeats a run from its record and compares the results."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from advbench.benchmark.employ import beside, with_employed
from advbench.benchmark.run import run as run_benchmark
from advbench.benchmark.start import with_start
from advbench.config.options import RunConfig
from advbench.runs.saved import Run
from advbench.runtime.device import undisturbed
from advbench.runtime.events import Listener
from advbench.runtime.failures import RunFailedError
from advbench.runtime.hashing import weights_digest
from advbench.runtime.interrupts import Interrupted
from advbench.runtime.timeouts import limited_verification
from advbench.verify.attack_again import threads_of
from advbench.verify.audit_again import check_surrogate
from advbench.verify.bounds import check_allocations
from advbench.verify.claims import OF_THE_MODEL, check_claims, check_labels, leave_metrics
from advbench.verify.report import (
    MOST_DISCORDANCE,
    Comparison,
    Report,
    differences,
    judge,
    machine_of,
    other_counts,
)
from advbench.verify.rounding import far_off, spreads
from advbench.verify.subject import Subject, subject_of
from attacks_pool import InputError
from defenses import TrainingDivergedError
from leaderboards import CLEAN, Cell, Record, RecordError, read_outcomes, read_record
from leaderboards.audits.contradictions import equal
from leaderboards.audits.following import older
from leaderboards.records.checksums import digest_of, listed_files
from leaderboards.records.layout import EVALUATED, OUTCOMES

SIZES = ("parameters", "multiply_adds")
PASSES = ("training_forwards", "training_backwards")
"""Costs that depend on every bit, because attacks in training may stop early."""


@undisturbed()
def retrain_run(
    run: Run,
    *,
    surrogate: Path | None = None,
    weights: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    keep: Path | None = None,
    listeners: Sequence[Listener] = (),
    timeout: float | None = None,
) -> Report:
    """Repeat a run, and compare every cell and every outcome.

    Its trained weights are not needed, but are compared if they, or their checksums, are stored. On the
    record's machine, with its versions and thread count, everything is equal bit for bit. Elsewhere training
    amplifies rounding differences, and the report says that the repetition was not exact. If an attack then
    differs by at least 5 points with a paired p below 0.01, the run is repeated four more times, each with
    different rounding, and up to 19 times if doubt remains. The record is refuted if it lies outside their
    results: at least 5 points from their mean, with p below 0.01 over the number of comparisons.

    Args:
        run: a finished run.
        surrogate: the run that the audit's transferred points were crafted on, if it was a run.
        weights: the file that the run started from, if it did and has no copy.
        device, threads: those of the record by default.
        keep: the directory for keeping the repeated run, with its weights. An unfinished run there is
            resumed, and a finished one is used. By default, a temporary directory is used.
        listeners: called with the training's events.
        timeout: seconds that the whole verification may take.

    Raises:
        InputError: it cannot be repeated here, or not in time or memory, or ``keep`` has the run itself.
    """
    began = time.perf_counter()
    if run.record.regime == EVALUATED:
        raise InputError(
            f"run {run.record.id} evaluated a model that was trained elsewhere: --retrain is for runs"
        )
    if keep is not None and run.path.resolve().is_relative_to(keep.resolve()):
        raise InputError(f"--keep {keep} has run {run.record.id} itself, which cannot verify itself")
    report = Report(run.record.id, run.path, "retrained")
    with _place(keep) as place:

        def leave() -> None:
            if keep is None:
                shutil.rmtree(place, ignore_errors=True)

        with limited_verification(timeout, f"training run {run.record.id} again", leave=leave):
            subject = subject_of(run)
            check_claims(subject, report)
            if report.confirmed:
                check_labels(subject, report)
            if report.confirmed:
                options = _options(run, device, threads, surrogate, weights)
                check_allocations(subject)
                _repeat(subject, report, place, options, listeners)
            else:
                report.not_looked_at.append("training: what is stored contradicts itself already")
    report.seconds = time.perf_counter() - began
    return report


def _repeat(
    subject: Subject,
    report: Report,
    place: str | Path,
    options: dict[str, Any],
    listeners: Sequence[Listener],
) -> None:
    """Repeat the run in ``place`` and compare it."""
    made = run_benchmark(runs_dir=place, listeners=listeners, reuse=True, **options)
    if made.record.id == subject.record.id:
        raise InputError(f"--keep {place} has a copy of run {made.record.id}, not a repetition of it")
    place_of = torch.device(str(made.record.environment["device"]).partition(" ")[0])
    report.machine = {**machine_of(place_of, subject.run.data), "threads": options["threads"]}
    _compare(subject, made, report)
    if not report.complete:
        _explained(made, report, options, listeners)


@contextmanager
def _place(keep: Path | None) -> Iterator[str | Path]:
    """The directory for the repeated run; an interruption reports what is kept."""
    kept = f"the same command resumes it in {keep}"
    try:
        if keep is not None:
            yield keep
        else:
            kept = "nothing of it is kept (--keep DIR keeps it)"
            with tempfile.TemporaryDirectory(prefix="advbench-verify-") as place:
                yield place
    except Interrupted as stop:
        stop.how = kept
        raise
    except RunFailedError as error:
        raise RunFailedError(error.what, f"; {kept}") from error
    except TrainingDivergedError as error:
        raise TrainingDivergedError(f"{error.__cause__}; {kept}") from error


def _options(
    run: Run, device: str | None, threads: int | None, surrogate: Path | None, weights: Path | None
) -> dict[str, Any]:
    """The options of :func:`advbench.run`: the recorded configuration, device and threads."""
    config: RunConfig = run.config
    kind = str(run.record.environment["device"]).partition(" ")[0]
    if weights is not None and config.weights is None:
        raise InputError(f"run {run.record.id} started from fresh weights: it needs no --weights")
    crafted_on = run.record.audit.surrogate or ""
    if crafted_on.startswith("run ") and surrogate is None:
        raise InputError(
            f"the audit of run {run.record.id} crafted points on {crafted_on}: give that with --surrogate"
        )
    check_surrogate(run.record, None if surrogate is None else read_record(surrogate))
    values = config.model_dump(mode="json")
    return {
        **with_employed(with_start(values, run.path, weights), beside(values, run.path)),
        "data_dir": run.data_dir or config.data_dir,
        "dataset": run.dataset,
        "device": device or kind,
        "threads": threads_of(run, threads),
        "surrogate": surrogate,
    }


def _compare(subject: Subject, made: Run, report: Report) -> None:
    record, again = subject.record, made.record
    other = differences(record, report.machine)
    processes = record.environment.get("processes", 1)
    if processes != 1:
        other.append(f"processes {processes} (here 1)")
    same = _weights(subject, made, report)
    report.comparisons = list(_outcomes(subject, made))
    # One stage that is equal bit for bit shows that this machine rounds like the record's.
    exact = (any(same) and processes == 1) or not other
    compared = report.comparisons
    report.faults += judge(compared, same_machine=True) if exact else []
    report.faults += _other_counts(record.cells, again.cells, exact=exact)
    if exact and not report.discordant:
        report.faults += _metrics_of_the_model(record, again)
    else:
        leave_metrics(subject, report, OF_THE_MODEL)
    report.faults += [
        f"cost: {name} is {getattr(record.cost, name)}, training again takes {getattr(again.cost, name)}"
        for name in (*SIZES, *(PASSES if exact else ()))
        if getattr(record.cost, name) != getattr(again.cost, name)
    ]
    codes, codes_again = ({flag.code for flag in one.audit.flags} for one in (record, again))
    if codes != codes_again:
        found = f"audit: flags {_names(codes)} in the record, {_names(codes_again)} here"
        # If the record's audit is older, it made fewer checks than the audit made here.
        (report.faults if exact and not older(record.audit) else report.notes).append(found)
    if exact and not report.discordant and not all(same):
        report.faults.append("weights: not those that training gives, although every outcome is the same")
    report.complete = exact
    report.sample = {"stages": [stage.index for stage in record.stages], "points": "all"}
    if other:
        report.notes.append(f"not the record's environment, bits may differ: {'; '.join(other)}")


def _explained(made: Run, report: Report, options: Mapping[str, Any], listeners: Sequence[Listener]) -> None:
    """Report large differences that rounding does not explain."""
    report.notes.append(
        "no exact repetition: on another machine training amplifies rounding, and a difference refutes "
        "only if it is larger than rounding causes in further trainings"
    )
    if not (suspects := list(far_off(report.comparisons))):
        return
    for spread in spreads(suspects, made, options, listeners, tests=len(report.comparisons)):
        (report.faults if spread.refutes else report.notes).append(spread.line())


def _names(codes: set[str]) -> str:
    return ", ".join(sorted(codes)) or "none"


def _outcomes(subject: Subject, made: Run) -> Iterator[Comparison]:
    """The comparisons of all points."""
    clean, robust = read_outcomes(subject.run.path / OUTCOMES)
    clean_again, robust_again = read_outcomes(made.path / OUTCOMES)
    for row, stage in enumerate(subject.record.stages):
        yield Comparison.of(stage.index, CLEAN, clean[row], clean_again[row])
        for column, (attack, count) in enumerate(subject.measured):
            before, now = (outcomes[row, column, :count] for outcomes in (robust, robust_again))
            yield Comparison.of(stage.index, attack.text, before, now)


def _other_counts(recorded: Sequence[Cell], again: Sequence[Cell], *, exact: bool) -> Iterator[str]:
    """Lines for different numbers of invalid examples and, if bits should be equal, of passes."""
    here = {(cell.stage, cell.attack): cell for cell in again}
    for cell in recorded:
        found = here[cell.stage, cell.attack]
        label = f"stage {cell.stage}, {cell.attack}"
        if abs(cell.invalid - found.invalid) > (0 if exact else MOST_DISCORDANCE * cell.n):
            yield f"{label}: {cell.invalid} invalid examples, {found.invalid} here"
        if exact:
            yield from other_counts(label, cell, dict(found), ("forwards", "backwards"))


def _metrics_of_the_model(record: Record, again: Record) -> Iterator[str]:
    """Lines for different metrics that do not follow from outcomes, which only retraining can check."""
    for name in sorted(record.metrics.keys() & OF_THE_MODEL):
        said, found = record.metrics[name], again.metrics.get(name)
        if not equal(said, found):
            yield f"metrics: {name} is {said}, training again gives {found}"
    if record.report is not None and record.report != again.report:
        yield "report: training again gives another one"


def _weights(subject: Subject, made: Run, report: Report) -> list[bool]:
    """For each stage whose weights or checksums are stored: whether they are equal bit for bit."""
    listed: Mapping[str, str] = {}
    with suppress(RecordError):
        listed = listed_files(subject.run.path)
    found: dict[int, str] = {}
    for stage in subject.record.stages:
        path, new = subject.run.path / stage.weights, made.path / stage.weights
        if path.is_file():
            one, other = load_file(path), load_file(new)
            same = weights_digest(one) == weights_digest(other)
            found[stage.index] = "" if same else _distance(one, other)
        elif stage.weights in listed:
            found[stage.index] = "" if listed[stage.weights] == digest_of(new) else "(another SHA-256)"
    if not found:
        report.notes.append("weights: neither they nor their checksums are kept")
    elif lines := [f"stage {stage} {difference}" for stage, difference in found.items() if difference]:
        report.notes.append(f"weights: other than the record's: {'; '.join(lines)}")
    else:
        report.notes.append(f"weights: of {len(found)} stages, the same bit for bit")
    return [not difference for difference in found.values()]


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """The distance of two sets of weights, relative to the length of the first."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return "of another structure"
    difference = _length(one[name].double() - other[name].double() for name in one)
    return f"{difference / max(_length(one.values()), 1e-30):.2g} of their length away"


def _length(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
