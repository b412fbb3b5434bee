"""``advbench run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advbench.cli.completion import attack_lists
from advbench.cli.finding import kept_in
from advbench.cli.options import (
    ATTACK_TIMEOUT,
    CHANNELS,
    CLASSES,
    DATA_DIR,
    DATA_MEMORY,
    DATASET,
    DEFENSE,
    DEVICE,
    DRY_RUN,
    FORMAT,
    IMAGE_SIZE,
    MODEL,
    MODEL_ARG,
    PER_CLASS,
    POINTS,
    RUNS_DIR,
    SELECT,
    SETTINGS,
    TRAIN_POINTS,
    TRAIN_SET,
    Format,
    Given,
    flag,
    memory,
    option,
    run_options,
    takes,
)


class RunOptions(Given):
    """The options of ``advbench run``."""

    defense: str | None = DEFENSE
    sequence: str | None = option(
        "Attacks to train against: fgsm,pgd:eps=4/255,cw or sample:4.",
        unset="fgsm,pgd,cw",
        autocompletion=attack_lists,
    )
    regime: str | None = option("continual, joint or meta.", unset="the defense's first")
    dataset: str | None = DATASET
    data_dir: str | None = DATA_DIR
    image_size: int | None = IMAGE_SIZE
    channels: int | None = CHANNELS
    classes: str | None = CLASSES
    train_points: int | None = TRAIN_POINTS
    data_memory: str | None = DATA_MEMORY
    model: str | None = MODEL
    model_arg: list[str] | None = MODEL_ARG
    weights: Path | None = option(
        "Weights to start from: safetensors or a state dict. With --set pretrain.epochs=0 they are row 0.",
        unset="fresh ones",
    )
    epochs: int | None = option("Epochs per stage.", unset="set by the data set", min=1)
    unseen: str | None = option(
        "Attacks to hold out of training, auto or none.", unset="auto", autocompletion=attack_lists
    )
    eval_: str | None = option(
        "More attacks, neither seen nor unseen.", "--eval", unset="none", autocompletion=attack_lists
    )
    points: str | None = POINTS
    seed: int | None = option("Random seed.", unset="0", min=0)
    seeds: str | None = option(
        "Several runs: a number of seeds (5), a list (0,3,7) or a range (0-4).", unset="one run with --seed"
    )
    device: str | None = DEVICE
    threads: int | None = option("CPU threads.", unset="1 for a small model, else torch's default", min=1)
    runs_dir: Path = RUNS_DIR
    config: Path | None = option("YAML or JSON file of options; a record.json repeats its run.", unset="none")
    set_: list[str] | None = SETTINGS
    train_set: list[str] | None = TRAIN_SET
    select: str | None = SELECT
    surrogate: Path | None = option(
        "Run whose model crafts the audit's transferred points.", unset="row 0's model"
    )
    tensorboard: bool = flag("Also write TensorBoard logs.", "--tensorboard")
    wandb: bool = flag("Also log to Weights & Biases; offline unless WANDB_MODE says otherwise.", "--wandb")
    mlflow: bool = flag(
        "Also log to MLflow; RUNS_DIR/mlflow.db unless MLFLOW_TRACKING_URI says otherwise.", "--mlflow"
    )
    resume: Path | None = option("Resume this unfinished run with its own options.", unset="none")
    fresh: bool = flag("Start over, even if the same run is unfinished.", "--fresh")
    attack_timeout: float | None = ATTACK_TIMEOUT
    trust: bool = flag("Import code (package.module:name) that --config or --resume names.", "--trust")
    per_class: bool | None = PER_CLASS
    format: Format = FORMAT
    dry_run: bool = DRY_RUN


@takes(RunOptions)
def run(asked: RunOptions) -> None:
    """Train a defense against a sequence of attacks and measure its robustness after each.

    Writes one directory per run. Prints a headline, the stage × attack matrix, the metrics and the audit;
    with --format json the record, or with --seeds a list of records. Repeat the command to resume an
    interrupted run.
    """
    options = run_options(asked)
    how = {key: getattr(asked, key) for key in ("tensorboard", "wandb", "mlflow", "attack_timeout", "trust")}
    how["data_memory"] = memory(asked.data_memory)
    if asked.resume is not None:
        _refuse_with_resume(asked, options)
        _write([{**how, "resume": kept_in(asked.resume, asked.runs_dir)}], asked)
        return
    from advbench.config.options import Options
    from advbench.sweep.grid import parse_seeds

    if asked.config is not None:
        options = _merged(asked.config, options, trust=asked.trust)
    surrogate = None if asked.surrogate is None else kept_in(asked.surrogate, asked.runs_dir)
    # Check all options first, so that no seed runs before a mistake is found.
    first = Options.of(options).seed
    seeds = [first] if asked.seeds is None else parse_seeds(asked.seeds, first=first, name="--seeds")
    runs = [{**options, "seed": seed} for seed in seeds]
    several = asked.seeds is not None
    if asked.dry_run:
        from advbench.cli.dry_run import show_plan

        show_plan(runs, asked.runs_dir, seeds[0], surrogate, asked.format, several=several)
        return
    how |= {"runs_dir": asked.runs_dir, "sample_seed": seeds[0], "surrogate": surrogate}
    how |= {"reuse": len(seeds) > 1, "resume": False if asked.fresh else None}
    _write([{**one, **how} for one in runs], asked, several=several)


def _write(runs: Sequence[dict[str, Any]], asked: RunOptions, *, several: bool = False) -> None:
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
            if asked.format is Format.table:
                results.print_run(finished[-1], per_class=asked.per_class)
    if asked.format is Format.json:
        results.write_json([run.record for run in finished], several=several)
    elif len(finished) > 1:
        results.print_seeds(finished, asked.runs_dir)


def _refuse_with_resume(asked: RunOptions, options: dict[str, Any]) -> None:
    """Reject options given with ``--resume``: a resumed run has its own."""
    others = {key: getattr(asked, key) for key in ("seeds", "config", "surrogate", "fresh", "dry_run")}
    given = {*options, *(key for key, value in others.items() if value)}
    if given:
        from advbench.benchmark.run import refuse_options

        refuse_options(given)


def _merged(config: Path, typed: dict[str, Any], *, trust: bool) -> dict[str, Any]:
    """The options of a config file, updated with those of the command line.

    Raises:
        InputError: the file cannot be read, or names code to import and ``trust`` is not set.
    """
    from advbench.benchmark.start import with_start
    from advbench.config.files import read_config
    from advbench.config.options import merge
    from advbench.config.plugins import code_named
    from attacks_pool.errors import InputError

    options = with_start(merge(read_config(config), typed), config.parent)
    named = code_named({key: value for key, value in options.items() if key not in typed})
    if named and not trust:
        raise InputError(
            f"config {config} names {named[0]}, and using it imports that code: add --trust if you trust it"
        )
    return options
