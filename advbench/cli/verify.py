"""``advbench verify``, ``submit`` and ``accept``: confirm the numbers of runs, and send runs to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli.echo import echo
from advbench.cli.finding import kept_in, named_run, named_runs, surrogate_run
from advbench.cli.options import Format, FormatOption, RecordedData, RunPath, RunsDir, RunsDirs

if TYPE_CHECKING:
    from advbench.runs.saved import Run
    from advbench.verify import Asked, Report

REFUTED = 1
"""The exit code if a run is refuted."""


StagesOption = Annotated[str, typer.Option(help="Stages to attack again: all, last or numbers such as 0,3.")]
AttacksOption = Annotated[
    str, typer.Option(help="Attacks to repeat: all, or a selection such as pgd,cw or pgd:eps=0.2.")
]
PointsOption = Annotated[
    int,
    typer.Option(min=1, help="Test points per attack and stage, rounded up to whole blocks."),
]
SampleSeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Random seed of the sample.", show_default="random"),
]
SurrogateOption = Annotated[
    Path | None,
    typer.Option(
        help="The run whose model crafted the audit's transferred points.",
        show_default="none",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        help="The evaluated model's file, if the run of advbench eval has no copy.",
        show_default="the run's copy",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, cuda:1.", show_default="the kind in the record")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="the record's")]
TrustOption = Annotated[
    bool,
    typer.Option("--trust", help="Import a factory, or load a program, named by the record or --weights."),
]
ACCEPTING, VERIFYING, RETRAINING = 3600.0, 6 * 3600.0, 7 * 24 * 3600.0
"""Default timeouts in seconds."""


def verify(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, directories of runs, or names of runs in --runs-dir."),
    ],
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train again from the record instead; needs no weights.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="With --retrain: directory to keep the new runs in, so that they can be resumed.",
            show_default="nowhere",
        ),
    ] = None,
    stages: StagesOption = "all",
    attacks: AttacksOption = "all",
    points: PointsOption = 500,
    seed: SampleSeedOption = None,
    run_seed: Annotated[
        int | None, typer.Option(help="In directories of runs, only this seed.", show_default="all")
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(help="In directories of runs, only this defense.", show_default="all"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="In directories of runs, only this data set.", show_default="all"),
    ] = None,
    runs_dir: RunsDirs = None,
    surrogate: SurrogateOption = None,
    weights: WeightsOption = None,
    data_dir: RecordedData = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    trust: TrustOption = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Most seconds per run.",
            show_default=f"{VERIFYING:.0f}; with --retrain {RETRAINING:.0f}",
        ),
    ] = None,
    leave_mark: Annotated[
        bool, typer.Option("--mark/--no-mark", help="Write the verdict to a file beside the record.")
    ] = True,
    format: FormatOption = Format.table,
) -> None:
    """Confirm or refute runs: attack the saved stages again and compare point by point; exit 1 if refuted.

    On the record's machine a single different outcome refutes a run; elsewhere it takes more than 1 % of an
    attack's points or of all. Also checks that the stored files agree, and that the model is not better on
    the test points than on points that it cannot have learnt. Marks a confirmed run as re-evaluated. With
    --retrain, trains the run again from its record, compares the two, and marks it as retrained.
    """
    from advbench.cli.tables_verify import print_failure, print_report, print_summary
    from advbench.runtime.timeouts import check_timeout
    from advbench.verify import Asked
    from advbench.verify.accept import mark
    from attacks_pool import InputError
    from leaderboards import RecordError

    seconds = timeout if timeout is not None else RETRAINING if retrain else VERIFYING
    check_timeout(seconds, "timeout")
    wanted = {"seed": run_seed, "defense": defense, "dataset": dataset}
    surrogate = surrogate_run(surrogate, runs_dir)
    found, several, failed = _runs(named_runs(runs, runs_dir), trust, data_dir, wanted)
    asked = Asked(stages, attacks, points, seed, device, threads)
    if keep is not None and not retrain:
        raise InputError("--keep needs --retrain")
    if retrain and (stages, attacks, points, seed) != ("all", "all", 500, None):
        raise InputError(
            "--stages, --attacks, --points and --seed choose a sample: --retrain compares everything"
        )
    trees: list[dict[str, Any]] = []
    refuted = 0
    for run in found:
        try:
            report = _verified(
                run,
                asked,
                retrain=retrain,
                keep=keep,
                surrogate=surrogate,
                weights=weights,
                timeout=seconds,
            )
        except Exception as error:
            if not several or not _is_users(error):
                raise
            failed += 1
            print_failure(run.path, error)
            continue
        try:
            marked = mark(report) if leave_mark else ""
        except RecordError as error:
            # Report the verdict even if the mark cannot be written.
            marked = f"not marked: {error}"
        refuted += not report.confirmed
        trees.append({**report.tree(), "mark": marked})
        if format is Format.table:
            (print_summary if several else print_report)(report, marked)
    if format is Format.json:
        echo(json.dumps(trees if several else trees[0], indent=1))
    elif several:
        echo(f"{len(trees) - refuted} runs confirmed, {refuted} refuted, {failed} could not be verified")
    if refuted or failed:
        raise typer.Exit(REFUTED if refuted else 2)


def submit(
    run: RunPath,
    runs_dir: RunsDirs = None,
    out: Annotated[
        Path | None, typer.Option(help="The archive to write.", show_default="RUN.zip in this folder")
    ] = None,
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


def accept(
    file: Annotated[Path, typer.Argument(help="An archive that advbench submit wrote.")],
    runs_dir: RunsDir = Path("runs"),
    points: PointsOption = 500,
    seed: SampleSeedOption = None,
    surrogate: SurrogateOption = None,
    weights: WeightsOption = None,
    data_dir: RecordedData = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    trust: TrustOption = False,
    timeout: Annotated[
        float, typer.Option(help="Most seconds to take; after that nothing is added.")
    ] = ACCEPTING,
    format: FormatOption = Format.table,
) -> None:
    """Verify an archive and add its run; if it is refuted, add nothing and exit 1."""
    from advbench.cli.tables_verify import print_report, tell
    from advbench.runs.saved import load_run
    from advbench.runtime.timeouts import check_timeout
    from advbench.verify import Asked
    from advbench.verify.accept import accept as accept_file

    check_timeout(timeout, "timeout")
    found = accept_file(
        file,
        runs_dir,
        asked=Asked(points=points, seed=seed, device=device, threads=threads),
        trust=trust,
        data_dir=data_dir,
        surrogate=None
        if surrogate is None
        else load_run(kept_in(surrogate, runs_dir), trust=trust, data_dir=data_dir),
        weights=weights,
        told=tell,
        timeout=timeout,
    )
    added = (
        "nothing was added"
        if found.place is None
        else f"{'already present as' if found.known else 'added, re-evaluated, as'} {found.place}"
    )
    if format is Format.json:
        place = None if found.place is None else str(found.place)
        echo(json.dumps({**found.report.tree(), "path": place, "known": found.known}, indent=1))
    else:
        print_report(found.report, added)
    if found.place is None:
        raise typer.Exit(REFUTED)


def _runs(
    paths: list[Path], trust: bool, data_dir: str | None, wanted: dict[str, Any]
) -> tuple[list[Run], bool, int]:
    """The selected runs, whether there may be several, and how many records cannot be read."""
    from advbench.cli.tables_verify import print_failure
    from advbench.runs.saved import Run
    from leaderboards import RecordError, read_record

    places: list[Path] = []
    several, failed = len(paths) > 1, 0
    for path in paths:
        directory = path.parent if path.name == "record.json" else path
        below = sorted(found.parent for found in directory.rglob("record.json") if _visible(found, directory))
        if (directory / "record.json").exists() or not below:
            places.append(directory)
        else:
            several = True
            places += below
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
            runs.append(Run(place, record, trust, data_dir))
    if not runs and not failed:
        said = ", ".join(f"{key} {value}" for key, value in given.items())
        raise RecordError(f"none of {len(places)} runs has {said}")
    return runs, several, failed


def _visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _verified(
    run: Run,
    asked: Asked,
    *,
    retrain: bool,
    keep: Path | None,
    surrogate: Path | None,
    weights: Path | None,
    timeout: float,
) -> Report:
    from advbench.cli.tables_verify import tell
    from advbench.runs.saved import load_run
    from advbench.verify import retrain_run, verify_run

    if retrain:
        from advbench.runtime.interrupts import interrupts
        from advbench.runtime.progress import reporter

        with interrupts() as stopper, reporter() as listener:
            return retrain_run(
                run,
                surrogate=surrogate,
                device=asked.device,
                threads=asked.threads,
                keep=keep,
                listeners=[listener, stopper],
                timeout=timeout,
            )
    other = None
    if surrogate is not None:
        other = load_run(surrogate, trust=run.trust, data_dir=run.data_dir)
    return verify_run(run, asked, surrogate=other, weights=weights, told=tell, timeout=timeout)


def _is_users(error: Exception) -> bool:
    """Whether an error is reported in one line, so that the other runs can continue."""
    from advbench.runtime.failures import RunFailedError
    from attacks_pool import InputError
    from defenses import TrainingDivergedError
    from leaderboards import RecordError

    return isinstance(error, InputError | RecordError | RunFailedError | TrainingDivergedError)
