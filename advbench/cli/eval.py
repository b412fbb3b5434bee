"""``advbench eval``."""

from __future__ import annotations

from pathlib import Path

from advbench.cli.completion import dataset_names, model_names, preset_names
from advbench.cli.finding import kept_in, named_model
from advbench.cli.options import (
    ATTACK_TIMEOUT,
    ATTACKS,
    CHANNELS,
    CLASSES,
    DATA_DIR,
    DATA_MEMORY,
    FORMAT,
    IMAGE_SIZE,
    MODEL_ARG,
    PER_CLASS,
    POINTS,
    RUNS_DIR,
    Format,
    Given,
    flag,
    memory,
    model_arguments,
    numbers,
    option,
    takes,
)


class EvalOptions(Given):
    """The options of ``advbench eval``."""

    model: str = option(
        "A model that advbench models lists, package.module:factory, a .pt, .ts or .pt2 file, "
        "torchvision:NAME, timm:NAME, robustbench:NAME, or a run's directory.",
        default=...,
        autocompletion=model_names,
    )
    model_arg: list[str] | None = MODEL_ARG
    dataset: str = option(
        "Data set; advbench datasets lists them.", default="digits", autocompletion=dataset_names
    )
    data_dir: str | None = DATA_DIR
    image_size: int | None = IMAGE_SIZE
    channels: int | None = CHANNELS
    classes: str | None = CLASSES
    data_memory: str | None = DATA_MEMORY
    weights: Path | None = option(
        "Weights for a model built from code: safetensors, or a plain state dict.", unset="none"
    )
    model_dir: Path | None = option(
        "Folder of RobustBench's checkpoints: DIR/cifar10/Linf/NAME.pt.", unset="none"
    )
    threat: str | None = option("Threat of a RobustBench model: linf, l2 or corruptions.", unset="linf")
    mean: str | None = option(
        "Mean to subtract before the model, one per channel: 0.49,0.48,0.45.", unset="none"
    )
    std: str | None = option("Deviation to divide by: 0.25,0.24,0.26.", unset="none")
    attacks: str | None = ATTACKS
    preset: str | None = option(
        "A list of attacks and points: one that advbench presets lists, or a YAML file.",
        unset="standard",
        autocompletion=preset_names,
    )
    points: str | None = POINTS
    name: str | None = option("Name of the model in tables.", unset="--model")
    seed: int = option("Random seed.", default=0, min=0)
    device: str = option("auto, cpu, cuda, cuda:1.", default="auto")
    threads: int | None = option("CPU threads.", unset="torch's default", min=1)
    abstain: str | None = option(
        "last: an extra last output means abstain: right under attack, wrong when clean.",
        unset="the model always answers",
    )
    surrogate: str | None = option(
        "Run whose model crafts the audit's transferred points, or none.",
        unset="a small plain model is trained",
    )
    save_examples: Path | None = option(
        "Write clean and crafted points, labels and outcomes to this .safetensors file.", unset="none"
    )
    runs_dir: Path = RUNS_DIR
    fresh: bool = flag("Start over, even if the same evaluation is unfinished.", "--fresh")
    workers: int | None = option("Number of processes.", unset="1", min=1)
    ray: str | None = option("Use a Ray cluster instead: auto, local or host:port.", unset="none")
    attack_timeout: float | None = ATTACK_TIMEOUT
    trust: bool = flag(
        "Load code that a .pt, .ts or .pt2 file or a preset names; it can do anything.", "--trust"
    )
    per_class: bool | None = PER_CLASS
    format: Format = FORMAT


@takes(EvalOptions)
def evaluate(asked: EvalOptions) -> None:
    """Measure the robustness of a model that was trained elsewhere; it only needs to return logits.

    A factory is imported; a .pt, .ts or .pt2 program is loaded only with --trust. Both can run any code.
    Weights are read as tensors, never as pickles; nothing is downloaded.
    Repeat the command to resume an interrupted evaluation.
    """
    from advbench.cli import results
    from advbench.external.evaluate_model import evaluate_model
    from advbench.runtime.interrupts import interrupts
    from advbench.runtime.progress import reporter

    options = dict(vars(asked))
    for key in ("fresh", "per_class", "format", "model_arg"):
        del options[key]
    options["model"] = named_model(asked.model, asked.runs_dir)
    options["data_memory"] = memory(asked.data_memory)
    options["model_args"] = model_arguments(asked.model_arg)
    options |= {"mean": numbers("mean", asked.mean), "std": numbers("std", asked.std)}
    if asked.surrogate is not None:
        options["surrogate"] = str(kept_in(Path(asked.surrogate), asked.runs_dir))
    resume = False if asked.fresh else None
    with interrupts() as stopper, reporter() as listener:
        run = evaluate_model(**options, listeners=[listener, stopper], resume=resume, progress=False)
    if asked.format is Format.json:
        results.write_json([run.record], several=False)
    else:
        results.print_run(run, per_class=asked.per_class)
