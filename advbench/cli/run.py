"""``advbench run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from advbench.cli.completion import defense_names
from advbench.cli.finding import kept_in
from advbench.cli.options import (
    AttackTimeout,
    DataDir,
    Dataset,
    Device,
    DryRun,
    Format,
    FormatOption,
    Model,
    PerClass,
    Points,
    RunsDir,
    Select,
    TrainingThreads,
    TrainSet,
)


def run(
    defense: Annotated[
        str | None,
        typer.Option(
            help="Defense to train: one that advbench defenses lists, or package.module:Class.",
            show_default="air",
            autocompletion=defense_names,
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            help="Attacks to train against: fgsm,pgd:eps=4/255,cw or sample:4.", show_default="fgsm,pgd,cw"
        ),
    ] = None,
    regime: Annotated[
        str | None, typer.Option(help="continual, joint or meta.", show_default="the defense's first")
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    model: Model = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs per stage.", show_default="set by the data set")
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Attacks to hold out of training, auto or none.", show_default="auto")
    ] = None,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", help="More attacks, neither seen nor unseen.", show_default="none"),
    ] = None,
    points: Points = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed.", show_default="0")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Several runs: a number of seeds (5), a list (0,3,7) or a range (0-4).",
            show_default="one run with --seed",
        ),
    ] = None,
    device: Device = None,
    threads: TrainingThreads = None,
    runs_dir: RunsDir = Path("runs"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of options; a record.json repeats its run.", show_default="none"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set a parameter of the defense or the training plan: key=value; repeatable.",
            show_default="the defense's and the data set's defaults",
        ),
    ] = None,
    train_set: TrainSet = None,
    select: Select = None,
    surrogate: Annotated[
        Path | None,
        typer.Option(
            help="Run whose model crafts the audit's transferred points.", show_default="row 0's model"
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="Resume this unfinished run with its own options.", show_default="none"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if the same run is unfinished.")
    ] = False,
    attack_timeout: AttackTimeout = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Import code (package.module:name) that --config or --resume names."),
    ] = False,
    per_class: PerClass = None,
    format: FormatOption = Format.table,
    dry_run: DryRun = False,
) -> None:
    """Train a defense against a sequence of attacks and measure its robustness after each.

    Writes one directory per run. Prints a headline, the stage × attack matrix, the metrics and the audit;
    with --format json the record, or with --seeds a list of records. Repeat the command to resume an
    interrupted run.
    """
    given: dict[str, Any] = {
        "defense": defense,
        "sequence": sequence,
        "regime": regime,
        "dataset": dataset,
        "data_dir": data_dir,
        "model": model,
        "epochs": epochs,
        "unseen": unseen,
        "eval": eval_,
        "points": points,
        "seed": seed,
        "device": device,
        "threads": threads,
        "select": select,
        "set": pairs("set", set_),
        "train_set": pairs("train-set", train_set),
    }
    options = {key: value for key, value in given.items() if value is not None}
    how: dict[str, Any] = {
        "tensorboard": tensorboard,
        "attack_timeout": attack_timeout,
        "trust": trust,
    }
    if resume is not None:
        typed = {"seeds": seeds, "config": config, "surrogate": surrogate, "fresh": fresh or None}
        _refuse({**options, **typed, "dry_run": dry_run or None})
        _write([{**how, "resume": kept_in(resume, runs_dir)}], format, per_class)
        return
    from advbench.config.files import read_config
    from advbench.config.options import Options, merge
    from advbench.sweep.grid import parse_seeds

    if config is not None:
        typed = dict(options)
        options = merge(read_config(config), typed)
        _check_trust(config, {key: value for key, value in options.items() if key not in typed}, trust=trust)
    surrogate = None if surrogate is None else kept_in(surrogate, runs_dir)
    # Check all options first, so that no seed runs before a mistake is found.
    first = Options.of(options).seed
    chosen = [first] if seeds is None else parse_seeds(seeds, first=first, name="--seeds")
    if dry_run:
        from advbench.cli.dry_run import show_plan

        plans = [{**options, "seed": seed} for seed in chosen]
        show_plan(plans, runs_dir, chosen[0], surrogate, format, several=seeds is not None)
        return
    how |= {"runs_dir": runs_dir, "sample_seed": chosen[0], "surrogate": surrogate, "reuse": len(chosen) > 1}
    runs = [{**options, **how, "seed": seed, "resume": False if fresh else None} for seed in chosen]
    _write(runs, format, per_class, several=seeds is not None)


def _write(
    runs: Sequence[dict[str, Any]], format: Format, per_class: bool | None, *, several: bool = False
) -> None:
    """Execute the runs in order and print each, or all as JSON at the end."""
    from advbench.benchmark.run import run as run_one
    from advbench.cli import results
    from advbench.runtime.interrupts import interrupts
    from advbench.runtime.progress import reporter

    finished = []
    with interrupts() as stopper:
        for options in runs:
            with reporter() as listener:
                finished.append(run_one(listeners=[listener, stopper], progress=False, **options))
            if format is Format.table:
                results.print_run(finished[-1], per_class=per_class)
    if format is Format.json:
        results.write_json([run.record for run in finished], several=several)
    elif len(finished) > 1:
        results.print_seeds(finished, runs[0]["runs_dir"])


def _refuse(typed: dict[str, Any]) -> None:
    """Reject options given with ``--resume``: a resumed run has its own."""
    given = {key for key, value in typed.items() if value not in (None, {})}
    if given:
        from advbench.benchmark.run import refuse_options

        refuse_options(given)


def _check_trust(config: Path, options: dict[str, Any], *, trust: bool) -> None:
    """Reject a config that names code to import, unless ``--trust`` is given.

    Args:
        config: the config file.
        options: the options from the file, without those of the command line.
        trust: whether ``--trust`` was given.

    Raises:
        InputError: the config names code and ``trust`` is not set.
    """
    from advbench.config.plugins import code_named
    from attacks_pool.errors import InputError

    named = code_named(options)
    if named and not trust:
        raise InputError(
            f"config {config} names {named[0]}, and using it imports that code: add --trust if you trust it"
        )


def pairs(option: str, given: list[str] | None) -> dict[str, str] | None:
    """Parse ``["a=1", "b=2"]`` as a dict."""
    from attacks_pool.errors import InputError

    found: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals or not value.strip():
            raise InputError(f"--{option} {text!r} cannot be read: write key=value")
        found[key.strip()] = value.strip()
    return found or None
