"""Models of RobustBench's zoo, with weights from local files; nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from advbench.models.torchvision import offline
from advbench.models.weights import load_state, read_state
from advbench.runtime.factory import one_line
from attacks_pool.errors import InputError, unknown

THREAT = "linf"
"""The default threat of RobustBench's models."""
THREATS: Mapping[str, str] = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
CLASSES: Mapping[int, str] = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}
NORMALISATION = tuple(
    f"{layer}{key}" for layer in ("", "normalize.", "0.") for key in ("mean", "std", "mu", "sigma")
)
SPARE = (*NORMALISATION, "model_preact_hl1.1.weight", "conv1.scores")
"""Keys that may differ between published checkpoints and RobustBench's architectures, without effect."""


def from_robustbench(
    name: str, classes: int, *, threat: str, weights: Path | None, model_dir: Path | None
) -> tuple[nn.Module, Path]:
    """An architecture of RobustBench's zoo with a local checkpoint, and the checkpoint's path.

    Args:
        name: the zoo's name of the model, such as ``Standard``.
        classes: 10, 100 or 1000, which determines the zoo's data set.
        threat: ``linf``, ``l2`` or ``corruptions``.
        weights: the checkpoint; by default ``model_dir``/DATASET/THREAT/NAME.pt, as in RobustBench.
        model_dir: see ``weights``.

    Raises:
        InputError: RobustBench or the file is missing, the name is unknown, or the weights do not fit.
    """
    label = f"robustbench:{name}"
    if threat not in THREATS:
        raise unknown("threat", threat, THREATS)
    if classes not in CLASSES:
        raise InputError(f"model {label!r}: the zoo has models of 10, 100 or 1000 classes, not of {classes}")
    entry = _zoo_entry(name, CLASSES[classes], THREATS[threat])
    if isinstance(entry["gdrive_id"], list):
        raise InputError(f"model {label!r} joins several checkpoints, which is not supported")
    path = _checkpoint(label, Path(CLASSES[classes]) / THREATS[threat] / name, weights, model_dir)
    state = read_state(path)
    try:
        with offline(), _alias("autoattack", "pyautoattack"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = entry["model"]()
    except Exception as error:
        raise InputError(f"model {label!r} cannot be built: {one_line(error)}") from error
    load_state(model, state, path, spare=SPARE)
    return model, path


def _zoo_entry(name: str, dataset: str, threat: str) -> dict[str, Any]:
    zoo = {key.value: value for key, value in _zoo().items()}[dataset]
    names = {key.value: value for key, value in zoo.items()}
    if name in names.get(threat, {}):
        entry: dict[str, Any] = names[threat][name]
        return entry
    elsewhere = [key.lower() for key, models in names.items() if name in models and key.lower() in THREATS]
    where = f"the zoo has {len(names.get(threat, {}))} for {dataset}, threat {threat.lower()}"
    hint = f"it is one of threat {' and '.join(elsewhere)}" if elsewhere else where
    raise unknown("robustbench model", name, names.get(threat, {}), see=hint)


def _zoo() -> Mapping[Any, Any]:
    """The zoo's table of models, imported without the package that its evaluation needs."""
    try:
        with _alias("autoattack", "pyautoattack"), offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zoo: Mapping[Any, Any] = importlib.import_module("robustbench.model_zoo").model_dicts
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "robustbench":
            raise InputError("robustbench is not installed: pip install 'advbench[robustbench]'") from None
        raise InputError(f"robustbench cannot be imported: {one_line(error)}") from error
    return zoo


def _checkpoint(label: str, place: Path, weights: Path | None, model_dir: Path | None) -> Path:
    if weights is not None:
        return weights
    if model_dir is None:
        raise InputError(
            f"model {label!r} needs a checkpoint: give --weights FILE or --model-dir DIR; "
            "nothing is downloaded"
        )
    found = [model_dir / f"{place}{suffix}" for suffix in (".safetensors", ".pt")]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise InputError(f"model {label!r}: there is no {found[1]}; nothing is downloaded")
    return path


@contextmanager
def _alias(name: str, real: str) -> Iterator[None]:
    """Within the block, ``import name`` finds the package ``real`` if ``name`` does not exist."""
    if name in sys.modules or importlib.util.find_spec(name) or not importlib.util.find_spec(real):
        yield
        return
    sys.modules[name] = importlib.import_module(real)
    sys.modules[f"{name}.state"] = importlib.import_module(f"{real}.state")
    try:
        yield
    finally:
        for alias in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[alias]
