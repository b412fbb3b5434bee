"""``advbench certify``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from advbench.cli.completion import dataset_names, model_names
from advbench.cli.echo import echo, warn
from advbench.cli.finding import named_run
from advbench.cli.options import (
    CHANNELS,
    CLASSES,
    DATA_DIR,
    DATA_MEMORY,
    DEVICE,
    FORMAT,
    IMAGE_SIZE,
    MODEL_ARG,
    RUNS_DIR,
    Format,
    Given,
    argument,
    flag,
    memory,
    model_arguments,
    numbers,
    option,
    takes,
)

if TYPE_CHECKING:
    from advbench.evaluation.certificates.certified import Told
    from advbench.external.certify_model import CertifyRequest

OF_MODELS = (
    *("dataset", "image_size", "channels", "classes", "data_memory", "weights", "model_dir", "threat"),
    *("mean", "std", "name", "model_arg"),
)
"""Options that go with ``--model`` alone."""


class Method(StrEnum):
    """Ways to prove."""

    auto = "auto"
    ibp = "ibp"
    crown = "crown"
    alpha_crown = "alpha-crown"
    smoothing = "smoothing"


class CertifyOptions(Given):
    """The options of ``advbench certify``."""

    run: Path | None = argument("A run's directory, its record.json, or its name in --runs-dir.")
    model: str | None = option(
        "A model to certify instead of a run, as advbench eval takes it.",
        unset="none",
        autocompletion=model_names,
    )
    norm: str = option("linf, l2 or l1.", default="linf")
    eps: str | None = option("Radius of the ball: 0.1 or 8/255.", unset="the data set's budget")
    points: int | None = option("Number of test points.", unset="all", min=1)
    method: Method = option("auto, ibp, crown, alpha-crown or smoothing.", default=Method.auto)
    sigma: float | None = option("Deviation of the noise of smoothing.", unset="none")
    draws: int | None = option("Noisy copies of each image for smoothing.", unset="100000", min=1)
    alpha: float | None = option("Probability that a certificate of smoothing is wrong.", unset="0.001")
    model_arg: list[str] | None = MODEL_ARG
    dataset: str | None = option(
        "Data set; advbench datasets lists them.", unset="digits", autocompletion=dataset_names
    )
    data_dir: str | None = DATA_DIR
    image_size: int | None = IMAGE_SIZE
    channels: int | None = CHANNELS
    classes: str | None = CLASSES
    data_memory: str | None = DATA_MEMORY
    weights: Path | None = option("Weights for a model built from code.", unset="none")
    model_dir: Path | None = option("Folder of RobustBench's checkpoints.", unset="none")
    threat: str | None = option("Threat of a RobustBench model: linf, l2 or corruptions.", unset="linf")
    mean: str | None = option("Mean to subtract before the model: 0.49,0.48,0.45.", unset="none")
    std: str | None = option("Deviation to divide by: 0.25,0.24,0.26.", unset="none")
    name: str | None = option("Name of the model in the record.", unset="--model")
    seed: int = option("Random seed.", default=0, min=0)
    device: str | None = DEVICE
    threads: int | None = option("CPU threads.", unset="torch's default", min=1)
    save: Path | None = option("File for the record.", unset="certificates/ in the run or in --runs-dir")
    runs_dir: Path = RUNS_DIR
    trust: bool = flag("Load code that a file or a record names; it can do anything.", "--trust")
    format: Format = FORMAT


@takes(CertifyOptions)
def certify(asked: CertifyOptions) -> None:
    """Prove, point by point, that no image within eps is classified otherwise, where a proof is found.

    The proofs are interval and linear bounds of the network. Smoothing certifies a smoothed version of any
    model instead. Exit 1 if an attack of the run broke a point that is proved.
    """
    from advbench.external.certify_model import CertifyRequest, certify_run
    from advbench.runs.saved import load_run
    from attacks_pool.errors import InputError
    from attacks_pool.metadata import parse_number

    if (asked.run is None) == (asked.model is None):
        raise InputError(
            "give either a run or --model: advbench certify RUN, or advbench certify --model NAME"
        )
    request = CertifyRequest(
        norm=asked.norm,
        eps=None if asked.eps is None else parse_number("eps", asked.eps),
        points=asked.points,
        method=asked.method.value,
        sigma=asked.sigma,
        draws=asked.draws,
        alpha=asked.alpha,
        seed=asked.seed,
        device=asked.device or "auto",
        threads=asked.threads,
        save=asked.save,
    )
    if asked.run is not None:
        for key in OF_MODELS:
            if getattr(asked, key) is not None:
                raise InputError(f"--{key.replace('_', '-')} goes with --model; a run has its own")
        run = load_run(named_run(asked.run, [asked.runs_dir]), trust=asked.trust, data_dir=asked.data_dir)
        with _progress() as told:
            path, tree = certify_run(run, request, told)
    else:
        path, tree = _certify_model(asked, request)
    if asked.format is Format.json:
        echo(json.dumps(tree, indent=1, allow_nan=False))
    else:
        _show(tree, path)
    if tree["attack_below_certificate"]:
        points = ", ".join(map(str, tree["attack_below_certificate"][:10]))
        warn(f"attack-below-certificate: an attack of the run broke points that are proved: {points}")
        raise typer.Exit(1)


def _certify_model(asked: CertifyOptions, request: CertifyRequest) -> tuple[Path, dict[str, Any]]:
    from advbench.external.certify_model import certify_model
    from advbench.external.request import EvalRequest

    options = {
        key: getattr(asked, key) for key in (*OF_MODELS, "model", "data_dir", "threads", "trust", "seed")
    }
    del options["model_arg"]
    options["dataset"] = asked.dataset or "digits"
    options["data_memory"] = memory(asked.data_memory)
    options["model_args"] = model_arguments(asked.model_arg)
    options |= {"mean": numbers("mean", asked.mean), "std": numbers("std", asked.std)}
    with _progress() as told:
        return certify_model(EvalRequest.of(options), request, asked.runs_dir, told)


def _show(tree: dict[str, Any], path: Path) -> None:
    from advbench.runtime.console import output
    from leaderboards.printable import in_line

    console, counts = output(), tree["counts"]
    lines = [("certified", counts["certified"])]
    if counts["robust"] is not None:
        lines.append((f"robust so far ({len(tree['attacks'])} attacks)", counts["robust"]))
    lines += [("clean", counts["clean_correct"]), ("points", counts["points"])]
    what = f"{tree['norm']} {tree['eps']:.4g}, {tree['method']}"
    if tree["smoothing"]:
        how = tree["smoothing"]
        what += f" (sigma {how['sigma']:g}, {how['draws']} draws, confidence {1 - how['alpha']:g})"
        what += "; of the smoothed model, not of the model itself"
    console.print(in_line(what), soft_wrap=True)
    for name, count in lines:
        console.print(f"{name:<26} {count:>6}  {100 * count / counts['points']:5.1f} %")
    console.print(f"{tree['seconds'] / counts['points']:.3g} seconds a point")
    console.print(in_line(f"written    {path}"), soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Told | None]:
    """A live line on a terminal; nothing elsewhere."""
    from rich.live import Live
    from rich.text import Text

    from advbench.runtime.console import errors

    console = errors(force_jupyter=False)
    if not console.is_terminal:
        yield None
        return
    with Live(Text("reading the model"), console=console, transient=True) as live:
        yield lambda done, proved: live.update(Text(f"{done} points, {proved} certified"))
