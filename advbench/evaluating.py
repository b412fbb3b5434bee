"""Evaluation of models that were trained elsewhere: any attacks, the same verifier, the same audit."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench.audit import audit, probe
from advbench.config import MOST_THREADS
from advbench.data import DataSet, Split, load_dataset
from advbench.environment import choose_device, describe, reproducible
from advbench.evalrecord import eval_config, eval_record, kept
from advbench.evaluate import evaluate
from advbench.events import Event, JsonLog, Listener, tell
from advbench.foreign import Foreign, Source, load_foreign
from advbench.resolve import parse_points
from advbench.saved import EVALUATED, WEIGHTS, Run
from advbench.suites import suite
from advbench.surrogates import Surrogate, given_surrogate, plain_surrogate
from attacks_pool import Attack, InputError
from attacks_pool.attack import check_images
from leaderboards import Cell, Record, new_run_directory, write_bytes, write_outcomes, write_record


@dataclass(frozen=True)
class _Job:
    """One evaluation, with nothing left open."""

    foreign: Foreign
    data: DataSet
    test: Split
    attacks: list[tuple[Attack, int]]
    config: dict[str, Any]
    surrogate: Surrogate | None = None
    began: float = field(default_factory=time.perf_counter)


def evaluate_model(
    model: str | Callable[[Tensor], Any],
    dataset: str = "digits",
    *,
    attacks: str | Sequence[str] | None = None,
    preset: str | None = None,
    name: str | None = None,
    points: int | str | dict[str, int] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    weights: str | Path | None = None,
    model_dir: str | Path | None = None,
    threat: str = "linf",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    surrogate: str | Path | None = None,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    listeners: Sequence[Listener] = (),
) -> Run:
    """Measure what a model that was trained elsewhere withstands; what ``advbench eval`` does.

    Args:
        model: ``package.module:factory``, a TorchScript (``.pt``) or exported (``.pt2``) file,
            ``torchvision:NAME``, ``robustbench:NAME``; or a module, or a function, from images
            (N, C, H, W) in [0, 1] to logits (N, K).
        dataset: a name that ``advbench datasets`` lists.
        attacks: ``fgsm,pgd:steps=50`` or a list of such texts.
        preset: a ready list of attacks instead; ``standard`` when neither is given.
        name: how tables call the model.
        points: test points: ``1000``, ``"cw=1000"``, all by default.
        seed: determines every draw.
        device: ``auto`` leaves a module where it is; a module is moved to any other.
        threads: CPU threads.
        weights: safetensors, or a state dict without other pickles, for a model built from code.
        model_dir: where RobustBench's checkpoints are.
        threat: of RobustBench's models: ``linf``, ``l2`` or ``corruptions``.
        mean, std: normalisation to put before the model, one value a channel.
        surrogate: a run whose model the audit crafts transferred points on, or ``none``; by default a small
            plain model is trained for it on the data set's training images.
        runs_dir: where the run's directory is made.
        data_dir: where the data sets' files are.
        listeners: called with every :class:`advbench.events.Event`.

    Returns:
        The evaluation; ``.record`` has everything that was measured.

    Raises:
        InputError, RecordError: anything that cannot be run; nothing is left on disk then.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads={threads} is out of range: it must be from 1 to {MOST_THREADS}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={seed} is out of range: a seed is at least 0 and below 2**63")
    place = _device(model, device)
    data = load_dataset(dataset, data_dir)
    chosen = suite(attacks, preset, data)
    counts = parse_points(points, data, chosen)
    for attack in chosen:
        check_images(attack.info, data.test.x[:1])
    other = given_surrogate(surrogate, data)
    source: Source | Callable[[Tensor], Any]
    if isinstance(model, str):
        source = Source(model, _path(weights), _path(model_dir), threat, _tuple(mean), _tuple(std))
    elif any(given is not None for given in (weights, model_dir, mean, std)):
        raise InputError("weights, model_dir, mean and std go with a model's text; a module has its own")
    else:
        source = model
    with reproducible(threads):
        foreign = load_foreign(source, data, seed=seed, name=name)
        foreign.model.to(place)
        measured = [
            (attack, counts.get(attack.name, counts.get("default", len(data.test)))) for attack in chosen
        ]
        size = max(count for _, count in measured)
        where = {"dataset": dataset, "data_dir": None if data_dir is None else str(data_dir)}
        how = {"points": counts, "seed": seed, "device": device, "threads": threads}
        config = eval_config(foreign, chosen, {**where, **how})
        test = Split(data.test.x[:size].to(place), data.test.y[:size].to(place))
        return _go(_Job(foreign, data, test, measured, config, other), Path(runs_dir), listeners)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given).expanduser()


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _device(model: object, text: str) -> torch.device:
    device = choose_device(text)
    if text == "auto" and isinstance(model, nn.Module):
        return next((tensor.device for tensor in model.parameters()), device)
    if text == "auto" and not isinstance(model, str):
        # A function keeps its tensors where its author put them, which nobody but a GPU's owner changes.
        return torch.device("cpu")
    return device


def _go(job: _Job, runs_dir: Path, listeners: Sequence[Listener]) -> Run:
    with _directory(runs_dir, _stem(job)) as directory:
        log = JsonLog(directory / "log.jsonl")
        try:
            say = functools.partial(_say, job, [*listeners, log])
            say("start", text=directory.name)
            record = _measured(job, directory, say)
            say("end", text=str(directory))
        finally:
            log.close()
    return Run(directory, record, data_dir=job.config["data_dir"])


def _stem(job: _Job) -> str:
    when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = [
        "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)[:60]
        for text in (job.foreign.name, job.data.name)
    ]
    return f"{when}-{EVALUATED}-{names[0]}-{names[1]}-s{job.config['seed']}"


@contextlib.contextmanager
def _directory(runs_dir: Path, stem: str) -> Iterator[Path]:
    """A new run directory, which goes again if what the user gave turns out not to run."""
    missing = [path for path in (runs_dir, *runs_dir.parents) if not path.exists()]
    directory = new_run_directory(runs_dir, stem)
    try:
        yield directory
    except InputError:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _say(job: _Job, listeners: Sequence[Listener], kind: Any, **values: Any) -> None:
    tell(listeners, Event(kind, elapsed=time.perf_counter() - job.began, **values))


def _measured(job: _Job, directory: Path, say: Callable[..., None]) -> Record:
    """Attack, audit and write; the record last."""
    model, seed = job.foreign.model, job.config["seed"]
    began = time.perf_counter()

    def view(_attack: Attack | None) -> nn.Module:
        return model

    def progress(cell: Cell) -> None:
        say("cell", attack=cell.attack, cell=cell)

    row = evaluate(view, job.test, job.attacks, stage=0, seed=seed, progress=progress)
    name, surrogate = job.surrogate or plain_surrogate(job.data, seed, job.test.x.device)
    probes = probe(
        view,
        job.test,
        attacks=[attack for attack, _ in job.attacks],
        surrogate=None if surrogate is None else surrogate.to(job.test.x.device),
        surrogate_name=name,
        seed=seed,
        stochastic=row.draws > 1,
    )
    seconds = time.perf_counter() - began
    record = eval_record(
        directory.name,
        job.config,
        job.foreign,
        job.data,
        row=row,
        attacks=job.attacks,
        audit=audit([row], job.attacks, probes=probes),
        seconds=seconds,
        environment=describe(job.test.x.device, job.data),
    )
    if job.foreign.file is not None and kept(job.foreign):
        write_bytes(directory / WEIGHTS, job.foreign.file.read_bytes())
    outcomes = directory / "outcomes.npz"
    write_outcomes(outcomes, row.clean[None], row.robust[None], probes=probes.robust)
    write_record(directory, record)
    return record
