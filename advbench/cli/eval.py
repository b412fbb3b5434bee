"""``advbench eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.completion import dataset_names, model_names
from advbench.cli.finding import kept_in
from advbench.cli.options import (
    AttackTimeout,
    DataDir,
    Format,
    FormatOption,
    PerClass,
    Points,
    RunsDir,
    Threads,
)


def evaluate(
    model: Annotated[
        str,
        typer.Option(
            help="A model that advbench models lists, package.module:factory, a .pt, .ts or .pt2 file, "
            "torchvision:NAME or robustbench:NAME.",
            autocompletion=model_names,
        ),
    ],
    dataset: Annotated[
        str, typer.Option(help="Data set; advbench datasets lists them.", autocompletion=dataset_names)
    ] = "digits",
    data_dir: DataDir = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights for a model built from code: safetensors, or a plain state dict.",
            show_default="none",
        ),
    ] = None,
    model_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of RobustBench's checkpoints: DIR/cifar10/Linf/NAME.pt.", show_default="none"
        ),
    ] = None,
    threat: Annotated[
        str | None,
        typer.Option(help="Threat of a RobustBench model: linf, l2 or corruptions.", show_default="linf"),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean to subtract before the model, one per channel: 0.49,0.48,0.45.", show_default="none"
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Deviation to divide by: 0.25,0.24,0.26.", show_default="none")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Attacks to run: fgsm,pgd:steps=50,square.", show_default="--preset")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A list of attacks: standard, screen or autoattack.", show_default="standard"),
    ] = None,
    points: Points = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model in tables.", show_default="--model")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    threads: Threads = None,
    abstain: Annotated[
        str | None,
        typer.Option(
            help="last: an extra last output means abstain: right under attack, wrong when clean.",
            show_default="the model always answers",
        ),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option(
            help="Run whose model crafts the audit's transferred points, or none.",
            show_default="a small plain model is trained",
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if the same evaluation is unfinished.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes.", show_default="1")] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Use a Ray cluster instead: auto, local or host:port.", show_default="none"),
    ] = None,
    attack_timeout: AttackTimeout = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Load a .pt, .ts or .pt2 program, which can run any code."),
    ] = False,
    per_class: PerClass = None,
    format: FormatOption = Format.table,
) -> None:
    """Measure the robustness of a model that was trained elsewhere; it only needs to return logits.

    A factory is imported; a .pt, .ts or .pt2 program is loaded only with --trust. Both can run any code.
    Weights are read as tensors, never as pickles; nothing is downloaded.
    Repeat the command to resume an interrupted evaluation.
    """
    from advbench.cli import results
    from advbench.external.evaluate_model import evaluate_model
    from advbench.runtime.interrupts import interrupts
    from advbench.runtime.progress import reporter

    with interrupts() as stopper, reporter() as listener:
        run = evaluate_model(
            model,
            dataset,
            attacks=attacks,
            preset=preset,
            name=name,
            points=points,
            seed=seed,
            device=device,
            threads=threads,
            weights=weights,
            model_dir=model_dir,
            threat=threat,
            mean=_numbers("mean", mean),
            std=_numbers("std", std),
            surrogate=None if surrogate is None else str(kept_in(Path(surrogate), runs_dir)),
            runs_dir=runs_dir,
            data_dir=data_dir,
            listeners=[listener, stopper],
            resume=False if fresh else None,
            attack_timeout=attack_timeout,
            workers=workers,
            ray=ray,
            abstain=abstain,
            trust=trust,
            progress=False,
        )
    if format is Format.json:
        results.write_json([run.record], several=False)
    else:
        results.print_run(run, per_class=per_class)


def _numbers(option: str, text: str | None) -> list[float] | None:
    """Parse ``0.49,0.48,0.45`` as numbers."""
    from attacks_pool.metadata import parse_number

    return None if text is None else [parse_number(option, part.strip()) for part in text.split(",")]
