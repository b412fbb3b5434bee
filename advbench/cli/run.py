"""``advbench run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from advbench.cli.options import (
    DataDir,
    Dataset,
    Device,
    Model,
    Points,
    RunsDir,
    Select,
    TrainingThreads,
    TrainSet,
)

MOST_SEEDS = 1000


def run(
    defense: Annotated[
        str | None, typer.Option(help="Defense to train; advbench defenses lists them.  [default: air]")
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(
            help="Attacks to train against: fgsm,pgd:eps=4/255,cw or sample:4.  [default: fgsm,pgd,cw]"
        ),
    ] = None,
    regime: Annotated[
        str | None, typer.Option(help="continual, joint or meta; the defense's own by default.")
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    model: Model = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of a stage.")] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Attacks kept out of training, auto or none.  [default: auto]")
    ] = None,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", help="More attacks to measure, neither seen nor unseen.  [default: none]"),
    ] = None,
    points: Points = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Determines every draw.  [default: 0]")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several runs: a number of seeds (5), a list (0,3,7) or a range (0-4).")
    ] = None,
    device: Device = None,
    threads: TrainingThreads = None,
    runs_dir: RunsDir = Path("runs"),
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON with a run's options; a record.json repeats its run.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the defense or of the training plan; repeatable."),
    ] = None,
    train_set: TrainSet = None,
    select: Select = None,
    surrogate: Annotated[
        Path | None,
        typer.Option(
            help="A run whose model the audit crafts transferred points on; row 0's model by default."
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this unfinished run; it has all other options.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew, even if the same run was left unfinished.")
    ] = False,
    attack_timeout: Annotated[
        float | None,
        typer.Option(help="Stop when an attack takes more seconds than this for a batch or block."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Import a package.module:factory that --config or --resume names."),
    ] = False,
) -> None:
    """Train a defense against a sequence of attacks and measure what it withstands after each.

    Writes one directory a run and prints the stage × attack matrix, the metrics and robustness by class. A
    run that was interrupted goes on when the same command is given again.
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
        _resume(resume, {**options, **{key: value for key, value in typed.items() if value is not None}}, how)
        return
    from advbench.config.files import read_config
    from advbench.config.options import Options, merge

    if config is not None:
        options = merge(read_config(config), options)
        _check_trust(config, options, typed=model, trust=trust)
    # Checked as a whole here, so that no seed runs before a mistake is found.
    chosen = _seeds(seeds, Options.of(options).seed)
    how |= {"runs_dir": runs_dir, "sample_seed": chosen[0], "surrogate": surrogate, "reuse": len(chosen) > 1}
    finished = _run([{**options, **how, "seed": seed, "resume": False if fresh else None} for seed in chosen])
    if len(finished) > 1:
        from advbench.cli import tables as render

        render.print_seeds(finished, runs_dir)


def _run(runs: Sequence[dict[str, Any]]) -> list[Any]:
    """Make the runs one after another and print each."""
    from advbench.benchmark.run import run as run_one
    from advbench.cli import tables as render
    from advbench.cli.progress import reporter
    from advbench.runtime.interrupts import interrupts

    finished = []
    with interrupts() as stopper:
        for options in runs:
            with reporter() as listener:
                finished.append(run_one(listeners=[listener, stopper], **options))
            render.print_run(finished[-1])
    return finished


def _resume(path: Path, typed: dict[str, Any], how: dict[str, Any]) -> None:
    """Go on with one run."""
    given = {key for key, value in typed.items() if value not in (None, {})}
    if given:
        from advbench.benchmark.run import refuse_options

        refuse_options(given)
    _run([{**how, "resume": path}])


def _check_trust(config: Path, options: dict[str, Any], *, typed: str | None, trust: bool) -> None:
    """A config cannot execute code: a factory that it names is imported only with ``--trust``.

    Raises:
        InputError: it names one, and nobody typed it.
    """
    from advbench.config.resolve import imports_code
    from attacks_pool.errors import InputError

    named = options.get("model")
    if typed is None and not trust and isinstance(named, str) and ":" in named and imports_code(named):
        raise InputError(
            f"config {config} names the model {named!r}, and using it imports that code: "
            "add --trust if you trust it"
        )


def pairs(option: str, given: list[str] | None) -> dict[str, str] | None:
    """``["a=1", "b=2"]`` as a dict."""
    from attacks_pool.errors import InputError

    found: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals or not value.strip():
            raise InputError(f"--{option} {text!r} cannot be read: write key=value")
        found[key.strip()] = value.strip()
    return found or None


def _seeds(text: str | None, first: int) -> list[int]:
    """The seeds that ``--seeds`` names: ``5`` counts up from ``first``, ``0,3,7`` and ``0-4`` list them."""
    from attacks_pool.errors import InputError

    if text is None:
        return [first]
    wrong = InputError(f"--seeds {text!r} cannot be read: write 5, 0,3,7 or 0-4")
    seeds: Sequence[int]
    try:
        if "-" in text:
            low, high = (int(part) for part in text.split("-"))
            seeds = range(low, high + 1)
        elif "," in text:
            seeds = [int(part) for part in text.split(",")]
        else:
            seeds = range(first, first + int(text))
        count = len(seeds)
    except (ValueError, OverflowError):
        raise wrong from None
    if not 0 < count <= MOST_SEEDS or len(set(seeds)) != count:
        raise wrong
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed < 2**63:
            raise InputError(f"--seeds {text!r} names seed {seed}: a seed is at least 0 and below 2**63")
    return list(seeds)
