"""``advbench verify``, ``submit`` and ``accept``: confirm the numbers of runs, and send runs to others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from advbench.cli.completion import attack_lists, dataset_names, defense_names
from advbench.cli.echo import echo
from advbench.cli.finding import kept_in, named_run, surrogate_run
from advbench.cli.options import (
    FORMAT,
    RECORDED_DATA,
    RUN_PATH,
    RUNS_DIR,
    RUNS_DIRS,
    Format,
    Given,
    argument,
    flag,
    option,
    takes,
)

if TYPE_CHECKING:
    from advbench.runs.saved import Run
    from advbench.verify import Asked, Report

REFUTED = 1
"""The exit code if a run is refuted."""

ACCEPTING, VERIFYING, RETRAINING = 3600.0, 6 * 3600.0, 7 * 24 * 3600.0
"""Default timeouts in seconds."""
SAMPLE_POINTS = option("Test points per attack and stage, rounded up to whole blocks.", default=500, min=1)
SAMPLE_SEED = option("Random seed of the sample.", "--seed", unset="random", min=0)
SURROGATE = option("The run whose model crafted the audit's transferred points.", unset="none")
WEIGHTS = option(
    "The evaluated model's file, or with --retrain the weights that the run started from.",
    unset="the run's copy",
)
RECORDED_DEVICE = option("auto, cpu, cuda, cuda:1.", unset="the kind in the record")
RECORDED_THREADS = option("CPU threads.", unset="the record's", min=1)
TRUST = flag("Import a factory, or load a program, named by the record or --weights.", "--trust")


class VerifyOptions(Given):
    """The options of ``advbench verify``."""

    runs: list[Path] = argument(
        "Run directories, directories of runs, or names of runs in --runs-dir.", default=...
    )
    retrain: bool = flag("Train again from the record instead; needs no trained weights.", "--retrain")
    keep: Path | None = option(
        "With --retrain: directory to keep the new runs in, so that they can be resumed.", unset="nowhere"
    )
    stages: str = option("Stages to attack again: all, last or numbers such as 0,3.", default="all")
    attacks: str = option(
        "Attacks to repeat: all, or a selection such as pgd,cw or pgd:eps=0.2.",
        default="all",
        autocompletion=attack_lists,
    )
    points: int = SAMPLE_POINTS
    seed: int | None = SAMPLE_SEED
    run_seed: int | None = option("In directories of runs, only this seed.", unset="all")
    defense: str | None = option(
        "In directories of runs, only this defense.", unset="all", autocompletion=defense_names
    )
    dataset: str | None = option(
        "In directories of runs, only this data set.", unset="all", autocompletion=dataset_names
    )
    runs_dir: list[Path] | None = RUNS_DIRS
    surrogate: Path | None = SURROGATE
    weights: Path | None = WEIGHTS
    data_dir: str | None = RECORDED_DATA
    device: str | None = RECORDED_DEVICE
    threads: int | None = RECORDED_THREADS
    trust: bool = TRUST
    timeout: float | None = option(
        "Most seconds per run.", unset=f"{VERIFYING:.0f}; with --retrain {RETRAINING:.0f}"
    )
    leave_mark: bool = option(
        "Write the verdict to a file beside the record.", "--mark/--no-mark", default=True
    )
    format: Format = FORMAT

    @property
    def sample(self) -> Asked:
        """What to attack again, and where."""
        from advbench.verify import Asked

        return Asked(self.stages, self.attacks, self.points, self.seed, self.device, self.threads)

    @property
    def seconds(self) -> float:
        """The timeout of a run."""
        return self.timeout if self.timeout is not None else RETRAINING if self.retrain else VERIFYING


@takes(VerifyOptions)
def verify(options: VerifyOptions) -> None:
    """Confirm or refute runs: attack the saved stages again and compare point by point; exit 1 if refuted.

    On the record's machine a single different outcome refutes a run; elsewhere it takes more than 1 % of an
    attack's points or of all. Also checks that the stored files agree, and that the model is not better on
    the test points than on points that it cannot have learnt. Marks a confirmed run as re-evaluated. With
    --retrain, trains the run again from its record, compares the two, and marks it as retrained.
    """
    from advbench.cli.tables_verify import print_failure, print_report, print_summary
    from advbench.runtime.timeouts import check_timeout
    from advbench.verify.accept import mark
    from leaderboards import RecordError

    check_timeout(options.seconds, "timeout")
    surrogate = surrogate_run(options.surrogate, options.runs_dir)
    found, several, failed = _runs(options)
    _check_retraining(options)
    trees: list[dict[str, Any]] = []
    refuted = 0
    for run in found:
        try:
            report = _verified(run, options, surrogate)
        except Exception as error:
            if not several or not _is_users(error):
                raise
            failed += 1
            print_failure(run.path, error)
            continue
        try:
            marked = mark(report) if options.leave_mark else ""
        except RecordError as error:
            # Report the verdict even if the mark cannot be written.
            marked = f"not marked: {error}"
        refuted += not report.confirmed
        trees.append({**report.tree(), "mark": marked})
        if options.format is Format.table:
            (print_summary if several else print_report)(report, marked)
    if options.format is Format.json:
        echo(json.dumps(trees if several else trees[0], indent=1))
    elif several:
        echo(f"{len(trees) - refuted} runs confirmed, {refuted} refuted, {failed} could not be verified")
    if refuted or failed:
        raise typer.Exit(REFUTED if refuted else 2)


def _check_retraining(options: VerifyOptions) -> None:
    """Refuse options that do not go with ``--retrain``, or without it."""
    from advbench.verify import Asked
    from attacks_pool import InputError

    if options.keep is not None and not options.retrain:
        raise InputError("--keep needs --retrain")
    if options.retrain and replace(options.sample, device=None, threads=None) != Asked():
        raise InputError(
            "--stages, --attacks, --points and --seed choose a sample: --retrain compares everything"
        )


def submit(
    run: Path = RUN_PATH,
    runs_dir: list[Path] | None = RUNS_DIRS,
    out: Path | None = option("The archive to write.", unset="RUN.zip in this folder"),
) -> None:
    """Pack a run into an archive for others: record, outcomes, checksums and weights."""
    from leaderboards import pack, read_record
    from leaderboards.printable import in_line

    run = named_run(run, runs_dir)
    directory = run.parent if run.name == "record.json" else run
    read_record(directory)
    target = out if out is not None else Path(f"{directory.resolve().name}.zip")
    names = pack(directory, target)
    size = target.stat().st_size
    echo(in_line(f"{target}: {len(names)} files, {size:,} bytes; advbench accept verifies it"))


class AcceptOptions(Given):
    """The options of ``advbench accept``."""

    file: Path = argument("An archive that advbench submit wrote.", default=...)
    runs_dir: Path = RUNS_DIR
    points: int = SAMPLE_POINTS
    seed: int | None = SAMPLE_SEED
    surrogate: Path | None = SURROGATE
    weights: Path | None = WEIGHTS
    data_dir: str | None = RECORDED_DATA
    device: str | None = RECORDED_DEVICE
    threads: int | None = RECORDED_THREADS
    trust: bool = TRUST
    timeout: float = option("Most seconds to take; after that nothing is added.", default=ACCEPTING)
    format: Format = FORMAT


@takes(AcceptOptions)
def accept(options: AcceptOptions) -> None:
    """Verify an archive and add its run; if it is refuted, add nothing and exit 1."""
    from advbench.cli.tables_verify import print_report, tell
    from advbench.runs.saved import load_run
    from advbench.runtime.timeouts import check_timeout
    from advbench.verify import Asked
    from advbench.verify.accept import accept as accept_file

    check_timeout(options.timeout, "timeout")
    sample = {key: getattr(options, key) for key in ("points", "seed", "device", "threads")}
    how = {key: getattr(options, key) for key in ("trust", "data_dir", "weights", "timeout")}
    if options.surrogate is not None:
        place = kept_in(options.surrogate, options.runs_dir)
        how["surrogate"] = load_run(place, trust=options.trust, data_dir=options.data_dir)
    found = accept_file(options.file, options.runs_dir, asked=Asked(**sample), told=tell, **how)
    added = (
        "nothing was added"
        if found.place is None
        else f"{'already present as' if found.known else 'added, re-evaluated, as'} {found.place}"
    )
    if options.format is Format.json:
        path = None if found.place is None else str(found.place)
        echo(json.dumps({**found.report.tree(), "path": path, "known": found.known}, indent=1))
    else:
        print_report(found.report, added)
    if found.place is None:
        raise typer.Exit(REFUTED)


def _runs(options: VerifyOptions) -> tuple[list[Run], bool, int]:
    """The selected runs, whether there may be several, and how many records cannot be read."""
    from advbench.cli.tables_verify import print_failure
    from advbench.runs.saved import Run
    from leaderboards import RecordError, read_record

    places: list[Path] = []
    paths = [named_run(path, options.runs_dir) for path in options.runs]
    several, failed = len(paths) > 1, 0
    for path in paths:
        directory = path.parent if path.name == "record.json" else path
        below = sorted(found.parent for found in directory.rglob("record.json") if _visible(found, directory))
        if (directory / "record.json").exists() or not below:
            places.append(directory)
        else:
            several = True
            places += below
    wanted = {"seed": options.run_seed, "defense": options.defense, "dataset": options.dataset}
    given = {key: value for key, value in wanted.items() if value is not None}
    runs: list[Run] = []
    for place in places:
        try:
            record = read_record(place)
        except RecordError as error:
            if not several:
                raise
            failed += 1
            print_failure(place, error)
            continue
        if all(record.config[key] == value for key, value in given.items()):
            runs.append(Run(place, record, options.trust, options.data_dir))
    if not runs and not failed:
        said = ", ".join(f"{key} {value}" for key, value in given.items())
        raise RecordError(f"none of {len(places)} runs has {said}")
    return runs, several, failed


def _visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _verified(run: Run, options: VerifyOptions, surrogate: Path | None) -> Report:
    from advbench.cli.tables_verify import tell
    from advbench.runs.saved import load_run
    from advbench.verify import retrain_run, verify_run

    if not options.retrain:
        other = None
        if surrogate is not None:
            other = load_run(surrogate, trust=run.trust, data_dir=run.data_dir)
        return verify_run(
            run, options.sample, surrogate=other, weights=options.weights, told=tell, timeout=options.seconds
        )
    from advbench.runtime.interrupts import interrupts
    from advbench.runtime.progress import reporter

    with interrupts() as stopper, reporter() as listener:
        return retrain_run(
            run,
            surrogate=surrogate,
            weights=options.weights,
            device=options.device,
            threads=options.threads,
            keep=options.keep,
            listeners=[listener, stopper],
            timeout=options.seconds,
        )


def _is_users(error: Exception) -> bool:
    """Whether an error is reported in one line, so that the other runs can continue."""
    from advbench.runtime.failures import RunFailedError
    from attacks_pool import InputError
    from defenses import TrainingDivergedError
    from leaderboards import RecordError

    return isinstance(error, InputError | RecordError | RunFailedError | TrainingDivergedError)
