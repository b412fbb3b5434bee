"""``advbench verify --retrain``: the run made once more from its record, and compared with it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from advbench.benchmark.run import run as run_benchmark
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
from advbench.verify.report import MOST_DISCORDANCE, Comparison, Report, differences, judge, machine_of
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
"""Attacks of training may stop early, so that these follow from every bit."""


@undisturbed()
def retrain_run(
    run: Run,
    *,
    surrogate: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    keep: Path | None = None,
    listeners: Sequence[Listener] = (),
    timeout: float | None = None,
) -> Report:
    """Make a run again, and compare cell for cell and outcome for outcome.

    Weights are not needed, but compared where they, or their checksums, are there. On the record's machine,
    with its versions and thread count, all is the same bit for bit. Elsewhere rounding leads training
    astray, and the report says that the repetition was no exact one. Where an attack then differs by 5
    points or more with a paired p below 0.01, the run is made four times more, each with rounding of its own,
    and up to 19 times where those leave a doubt. The record is refuted if it lies outside of what they give:
    5 points or more from their mean, p below 0.01 over the number of comparisons.

    Args:
        run: a finished run.
        surrogate: the run that the audit's transferred points were crafted on, where it was one.
        device, threads: those of the record by default.
        keep: the directory where the run that is made again stays, with its weights. What was begun there is
            gone on with, and what is finished is taken. By default it is made in a temporary place.
        listeners: told of the training's events.
        timeout: seconds that all of it may take.

    Raises:
        InputError: it cannot be repeated here, or not in time or memory, or ``keep`` has the run itself.
    """
    began = time.perf_counter()
    if run.record.regime == EVALUATED:
        raise InputError(
            f"run {run.record.id} evaluated a model that was trained elsewhere: --retrain is for runs"
        )
    if keep is not None and run.path.resolve().is_relative_to(keep.resolve()):
        raise InputError(f"--keep {keep} has run {run.record.id} itself: what was made before proves nothing")
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
                options = _options(run, device, threads, surrogate)
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
    """Make the run in ``place`` and compare it."""
    made = run_benchmark(runs_dir=place, listeners=listeners, reuse=True, **options)
    if made.record.id == subject.record.id:
        raise InputError(f"--keep {place} has a copy of run {made.record.id}, not one made again from it")
    place_of = torch.device(str(made.record.environment["device"]).partition(" ")[0])
    report.machine = {**machine_of(place_of, subject.run.data), "threads": options["threads"]}
    _compare(subject, made, report)
    if not report.complete:
        _explained(made, report, options, listeners)


@contextmanager
def _place(keep: Path | None) -> Iterator[str | Path]:
    """Where the run is made again; whoever is stopped there is told what is left of it."""
    kept = (
        "nothing of it is kept (--keep DIR keeps it)"
        if keep is None
        else f"the same command goes on in {keep}"
    )
    try:
        if keep is not None:
            yield keep
        else:
            with tempfile.TemporaryDirectory(prefix="advbench-verify-") as place:
                yield place
    except Interrupted as stop:
        stop.how = kept
        raise
    except RunFailedError as error:
        raise RunFailedError(error.what, f"; {kept}") from error
    except TrainingDivergedError as error:
        raise TrainingDivergedError(f"{error.__cause__}; {kept}") from error


def _options(run: Run, device: str | None, threads: int | None, surrogate: Path | None) -> dict[str, Any]:
    """What :func:`advbench.run` is asked: the recorded configuration, where it was made."""
    config: RunConfig = run.config
    kind = str(run.record.environment["device"]).partition(" ")[0]
    crafted_on = run.record.audit.surrogate or ""
    if crafted_on.startswith("run ") and surrogate is None:
        raise InputError(
            f"the audit of run {run.record.id} crafted points on {crafted_on}: give that with --surrogate"
        )
    check_surrogate(run.record, None if surrogate is None else read_record(surrogate))
    return {
        **config.model_dump(mode="json"),
        "data_dir": run.data_dir or config.data_dir,
        "dataset": run.dataset,
        "device": device or kind,
        "threads": threads_of(run, threads),
        "surrogate": surrogate,
    }


def _compare(subject: Subject, made: Run, report: Report) -> None:
    record, again = subject.record, made.record
    other = differences(record, report.machine)
    same = _weights(subject, made, report)
    report.comparisons = list(_outcomes(subject, made))
    # One stage that is the same bit for bit shows that this machine rounds as the record's did.
    exact = any(same) or not other
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
        # Where the record's audit is older, it looked for fewer signs than the one made here.
        (report.faults if exact and not older(record.audit) else report.notes).append(found)
    if exact and not report.discordant and not all(same):
        report.faults.append("weights: not those that training gives, though every outcome is the same")
    report.complete = exact
    report.sample = {"stages": [stage.index for stage in record.stages], "points": "all"}
    if other:
        report.notes.append(f"not the record's environment, bits may differ: {'; '.join(other)}")


def _explained(made: Run, report: Report, options: Mapping[str, Any], listeners: Sequence[Listener]) -> None:
    """What differs so much that it needs an explanation: whether rounding is one."""
    report.notes.append(
        "no exact repetition: on another machine rounding leads training astray, and a difference refutes "
        "only where it is larger than what more trainings show rounding to make"
    )
    if not (suspects := list(far_off(report.comparisons))):
        return
    for spread in spreads(suspects, made, options, listeners, tests=len(report.comparisons)):
        (report.faults if spread.refutes else report.notes).append(spread.line())


def _names(codes: set[str]) -> str:
    return ", ".join(sorted(codes)) or "none"


def _outcomes(subject: Subject, made: Run) -> Iterator[Comparison]:
    """Point by point, over all points."""
    clean, robust = read_outcomes(subject.run.path / OUTCOMES)
    clean_again, robust_again = read_outcomes(made.path / OUTCOMES)
    for row, stage in enumerate(subject.record.stages):
        everything = np.ones(clean.shape[1], dtype=bool)
        yield Comparison.of(stage.index, CLEAN, clean[row], clean_again[row], everything)
        for column, (attack, count) in enumerate(subject.measured):
            yield Comparison.of(
                stage.index,
                attack.text,
                robust[row, column, :count],
                robust_again[row, column, :count],
                everything[:count],
            )


def _other_counts(recorded: Sequence[Cell], again: Sequence[Cell], *, exact: bool) -> Iterator[str]:
    """Examples that broke a bound and, where bits are the same, passes; the rest follows from outcomes."""
    here = {(cell.stage, cell.attack): cell for cell in again}
    for cell in recorded:
        found = here[cell.stage, cell.attack]
        if abs(cell.invalid - found.invalid) > (0 if exact else MOST_DISCORDANCE * cell.n):
            yield f"stage {cell.stage}, {cell.attack}: {cell.invalid} invalid examples, {found.invalid} here"
        for name in ("forwards", "backwards") if exact else ():
            if (said := getattr(cell, name)) != (count := getattr(found, name)):
                yield f"stage {cell.stage}, {cell.attack}: {name} is {said}, training again gives {count}"


def _metrics_of_the_model(record: Record, again: Record) -> Iterator[str]:
    """What no outcomes give, so that only training again shows whether it is true."""
    for name in sorted(record.metrics.keys() & OF_THE_MODEL):
        said, found = record.metrics[name], again.metrics.get(name)
        if not equal(said, found):
            yield f"metrics: {name} is {said}, training again gives {found}"


def _weights(subject: Subject, made: Run, report: Report) -> list[bool]:
    """For each stage whose weights or checksums are there: whether they are the same bit for bit."""
    same: list[bool] = []
    lines: list[str] = []
    listed = _listed(subject.run.path)
    for stage in subject.record.stages:
        path, new = subject.run.path / stage.weights, made.path / stage.weights
        if path.is_file():
            one, other = load_file(path), load_file(new)
            equal = weights_digest(one) == weights_digest(other)
            same.append(equal)
            if not equal:
                lines.append(f"stage {stage.index} {_distance(one, other)}")
        elif stage.weights in listed:
            same.append(listed[stage.weights] == digest_of(new))
            if not same[-1]:
                lines.append(f"stage {stage.index} (another SHA-256)")
    if not same:
        report.notes.append("weights: neither they nor their checksums are kept")
    elif all(same):
        report.notes.append(f"weights: of {len(same)} stages, the same bit for bit")
    else:
        report.notes.append(f"weights: other than the record's: {'; '.join(lines)}")
    return same


def _listed(directory: Path) -> Mapping[str, str]:
    try:
        return listed_files(directory)
    except RecordError:
        return {}


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """How far two sets of weights are from each other, relative to the length of the first."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return "of another structure"
    difference, length = (
        _length({name: one[name].double() - other[name].double() for name in one}),
        _length(one),
    )
    return f"{difference / max(length, 1e-30):.2g} of their length away"


def _length(tensors: Mapping[str, Tensor]) -> float:
    squares: NDArray[np.float64] = np.array(
        [float(tensor.double().square().sum()) for tensor in tensors.values()], dtype=np.float64
    )
    return float(np.sqrt(squares.sum()))
