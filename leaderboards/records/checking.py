"""Integrity checks of a finished run: checksums, schema, consistency of record, outcomes and weights.

Numbers of a record that no run can have are found too, so that absurd numbers are never summed or shown.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from leaderboards.errors import RecordError
from leaderboards.records.certificates import certificates_of
from leaderboards.records.checksums import verify_checksums
from leaderboards.records.entries import CLEAN
from leaderboards.records.layout import (
    CHECKPOINT,
    CHECKSUMS,
    EVALUATED,
    MANIFEST,
    OUTCOMES,
    RECORD,
    WEIGHTS,
    files_below,
)
from leaderboards.records.limits import weights_fault
from leaderboards.records.lock import is_held
from leaderboards.records.manifest import read_manifest
from leaderboards.records.record import Record
from leaderboards.records.store import Bools, read_outcomes, read_probe_outcomes, read_record

MOST_SECONDS: Final = 10 * 366 * 24 * 3600
"""Ten years."""
MOST_PASSES: Final = 10**15
"""The most passes of a cell or training; 300 epochs of ImageNet with 50 steps per point take 2 · 10^10."""
MOST_METRIC: Final = 10**6
"""The largest absolute value of a metric; metrics are shares, decibels and ratios."""


@dataclass(frozen=True)
class Findings:
    """The result of `check_run`: one line for each damage, and notes on harmless findings."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_run(run_dir: Path) -> Findings:
    """Check everything in a run directory, without changing it.

    A run without a record is unfinished, which is not damage; only its manifest is checked. It is not damage
    either if all weights are missing: published records may leave them out.
    """
    run_dir = Path(run_dir)
    found = Findings()
    try:
        record = read_record(run_dir / RECORD)
    except RecordError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            _check_unfinished(run_dir, found)
        else:
            _check_files(run_dir, found)
            found.problems.append(str(error))
        return _brief(run_dir, found)
    _check_files(run_dir, found)
    for check in (_plausible, _manifest, _outcomes, _probes, _weights, _certificates):
        try:
            lines = list(check(run_dir, record))
        except RecordError as error:
            lines = [str(error)]
        found.problems.extend(lines)
    return _without_weights(run_dir, _brief(run_dir, found))


def _check_unfinished(run_dir: Path, found: Findings) -> None:
    if is_held(run_dir):
        found.notes.append("running")
    elif (run_dir / CHECKSUMS).exists() and not (run_dir / CHECKPOINT).exists():
        # Checkpoints are removed after the record is written: without them, a record must have existed.
        found.problems.append(f"{RECORD}: missing, though the run was finished: it has a {CHECKSUMS}")
    else:
        found.notes.append("unfinished")
    try:
        read_manifest(run_dir)
    except RecordError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            found.problems.append(str(error))


def _check_files(run_dir: Path, found: Findings) -> None:
    try:
        found.problems.extend(verify_checksums(run_dir))
    except RecordError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            found.problems.append(str(error))
        elif (run_dir / MANIFEST).exists():
            found.problems.append(f"{CHECKSUMS}: missing")
        else:
            found.notes.append("no checksums: the run predates them; the rest was checked")


def _brief(run_dir: Path, found: Findings) -> Findings:
    """The findings without the directory's path, and with one line per file whose content is wrong."""
    places = (f"{run_dir}/", f"{run_dir}\\")
    lines = [line.replace(places[0], "").replace(places[1], "") for line in found.problems]
    return Findings(list(dict.fromkeys(lines)), found.notes)


def _without_weights(run_dir: Path, found: Findings) -> Findings:
    """Turn the lines on weights into a note if all are missing, as published records leave them out."""
    if any(path.suffix == ".safetensors" for path in files_below(run_dir)):
        return found
    left = [line for line in found.problems if not line.endswith(".safetensors: missing")]
    without = len(left) < len(found.problems)
    return Findings(left, [*found.notes, *(["without weights"] if without else [])])


def _plausible(_: Path, record: Record) -> Iterator[str]:
    for line in implausible(record):
        yield f"{RECORD}: {line}"


def implausible(record: Record) -> Iterator[str]:
    """One line for each number that is larger than any run can have."""
    cells = [(f"stage {cell.stage}, {cell.attack}", cell) for cell in record.cells]
    cells += [(f"probe {cell.attack}", cell) for cell in record.audit.probes]
    for label, cell in cells:
        yield from _above(f"{label}: seconds", cell.seconds, MOST_SECONDS)
        yield from _above(f"{label}: forwards", cell.forwards, MOST_PASSES)
        yield from _above(f"{label}: backwards", cell.backwards, MOST_PASSES)
    cost = record.cost
    yield from _above("cost: training_seconds", cost.training_seconds, MOST_SECONDS)
    yield from _above("cost: evaluation_seconds", cost.evaluation_seconds, MOST_SECONDS)
    for name in ("training_forwards", "training_backwards", "parameters", "multiply_adds"):
        yield from _above(f"cost: {name}", getattr(cost, name), MOST_PASSES)
    for name, value in record.metrics.items():
        yield from _above(f"metrics: {name}", abs(value or 0.0), MOST_METRIC)
    for name, value in record.report.numbers.items() if record.report else ():
        yield from _above(f"report: {name}", abs(value), MOST_PASSES)


def _above(what: str, value: float, most: int) -> Iterator[str]:
    if value > most:
        # A huge integer such as 10^400 does not fit a float.
        shown = f"10^{math.log10(value):.0f}" if value > sys.float_info.max else f"{value:.2g}"
        yield f"{what} is {shown}, more than the {most:.2g} that any run can have"


def _manifest(run_dir: Path, record: Record) -> Iterator[str]:
    if (run_dir / MANIFEST).exists():
        manifest = read_manifest(run_dir)
        if manifest.id != record.id:
            yield f"{MANIFEST}: belongs to run {manifest.id!r}, the record to {record.id!r}"


def _outcomes(run_dir: Path, record: Record) -> Iterator[str]:
    return outcome_faults(record, *read_outcomes(run_dir / OUTCOMES))


def outcome_faults(record: Record, clean: Bools, robust: Bools) -> Iterator[str]:
    """One line for each fault of the outcomes' shapes, then of every cell's integer counts."""
    points = max((cell.n for cell in record.cells), default=0)
    expected = (len(record.stages), len(record.attacks), points)
    if robust.shape != expected:
        yield f"{OUTCOMES}: robust has shape {robust.shape}, the record {expected} (stages, attacks, points)"
        return
    if (robust & ~clean[:, None]).any():
        yield f"{OUTCOMES}: points that are misclassified when clean are marked robust"
    rows = {stage.index: row for row, stage in enumerate(record.stages)}
    columns = {entry.text: column for column, entry in enumerate(record.attacks)}
    wanted = {(stage, attack) for stage in rows for attack in (CLEAN, *columns)}
    for stage, attack in sorted(wanted - {(cell.stage, cell.attack) for cell in record.cells}):
        yield f"{RECORD}: no cell for stage {stage}, attack {attack}"
    for cell in record.cells:
        if cell.stage not in rows:
            yield f"{RECORD}: a cell names stage {cell.stage}, which is not among the stages"
            continue
        right = clean[rows[cell.stage]]
        kept = right if cell.attack == CLEAN else robust[rows[cell.stage], columns[cell.attack]]
        # Points on which an attack was not measured must not be marked.
        counts = int(right[: cell.n].sum()), int(kept.sum())
        if (cell.clean_correct, cell.robust) != counts:
            yield (
                f"{RECORD}: stage {cell.stage}, attack {cell.attack}: clean_correct {cell.clean_correct} and "
                f"robust {cell.robust}, the stored outcomes have {counts[0]} and {counts[1]}"
            )


def _probes(run_dir: Path, record: Record) -> Iterator[str]:
    return probe_faults(record, read_probe_outcomes(run_dir / OUTCOMES))


def probe_faults(record: Record, probes: Bools) -> Iterator[str]:
    """One line for a wrong shape of the probes' outcomes, then for each wrong count of a probe."""
    cells = record.audit.probes
    if probes.size == 0:
        # No outcomes of probes were stored, or there are no probes.
        return
    points = max((cell.n for cell in cells), default=0)
    if probes.shape != (len(cells), points):
        yield f"{OUTCOMES}: probes have shape {probes.shape}, the record {(len(cells), points)}"
        return
    for cell, count in zip(cells, np.sum(probes, axis=1), strict=True):
        if cell.robust != count:
            yield f"{RECORD}: probe {cell.attack}: robust {cell.robust}, the stored outcomes have {count}"


def _weights(run_dir: Path, record: Record) -> Iterator[str]:
    """One line for each file of weights that is missing or not as long as its header says."""
    names = [stage.weights for stage in record.stages if stage.weights.endswith(".safetensors")]
    for name in dict.fromkeys([*names, *([] if record.regime == EVALUATED else [WEIGHTS])]):
        path = run_dir / name
        if not path.is_file():
            yield f"{name}: missing"
        elif fault := _weights_fault(path):
            yield f"{name}: {fault}"


def _certificates(run_dir: Path, record: Record) -> list[str]:
    return certificates_of(run_dir, record)[1]


def _weights_fault(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        if fault := weights_fault(path):
            return f"damaged weights: {fault}"
        with safe_open(path, framework="numpy"):
            return ""
    except (SafetensorError, OSError, ValueError) as error:
        return f"damaged weights: {' '.join(str(error).split())}"
