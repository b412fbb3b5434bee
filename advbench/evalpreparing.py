"""What an evaluation of a foreign model was asked for, checked and loaded before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench.abstaining import check_abstain
from advbench.data import load_dataset
from advbench.environment import choose_device
from advbench.evaljob import Job, identity_of
from advbench.evalrecord import eval_config
from advbench.foreign import Source, load_foreign
from advbench.resolve import parse_points
from advbench.suites import suite
from advbench.surrogates import given_surrogate
from attacks_pool import InputError
from attacks_pool.attack import check_task


def prepare_job(
    model: str | Callable[[Tensor], Any],
    dataset: str,
    *,
    attacks: str | Sequence[str] | None,
    preset: str | None,
    name: str | None,
    points: int | str | dict[str, int] | None,
    seed: int,
    device: str,
    threads: int | None,
    weights: str | Path | None,
    model_dir: str | Path | None,
    threat: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    surrogate: str | Path | None,
    data_dir: str | Path | None,
    attack_timeout: float | None,
    abstain: str | None = None,
    trust: bool = False,
) -> tuple[Job, str | None]:
    """What :func:`evaluate_model` was asked for, checked and loaded, and its identity, if it has one.

    Raises:
        InputError, RecordError: anything that cannot be run.
    """
    gives_up = check_abstain(abstain)
    place = _device(model, device)
    data = load_dataset(dataset, data_dir)
    chosen = suite(attacks, preset, data)
    counts = parse_points(points, data, chosen)
    check_task(chosen, data.image_shape, data.num_classes)
    other = given_surrogate(surrogate, data)
    source: Source | Callable[[Tensor], Any]
    if isinstance(model, str):
        source = Source(model, _path(weights), _path(model_dir), threat, _tuple(mean), _tuple(std), trust)
    elif any(given is not None for given in (weights, model_dir, threat, mean, std)):
        raise InputError(
            "weights, model_dir, threat, mean and std go with a model's text; a module has its own"
        )
    else:
        source = model
    foreign = load_foreign(source, data, seed=seed, name=name, abstain=gives_up)
    foreign.model.to(place)
    measured = [(attack, counts.get(attack.name, counts.get("default", len(data.test)))) for attack in chosen]
    where = {"dataset": dataset, "data_dir": None if data_dir is None else str(data_dir)}
    how = {"points": counts, "seed": seed, "device": device, "threads": threads}
    config = eval_config(foreign, chosen, {**where, **how})
    job = Job(foreign, data, measured, config, place, other, attack_timeout)
    code = _code(source)
    return job, None if code is None else identity_of(job, code)


def _code(source: Source | Callable[[Tensor], Any]) -> tuple[str, ...] | None:
    """The modules that build the model; None for one that cannot be known again: it came without a text."""
    if not isinstance(source, Source):
        return None
    module, colon, _ = source.model.partition(":")
    return (module,) if colon and module not in ("torchvision", "robustbench") else ()


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
