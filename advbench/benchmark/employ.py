"""Finished runs whose models a defense employs, such as the teacher of a student."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from advbench.config.options import RunConfig
from advbench.data import DataSet
from advbench.runs.named import find_run
from advbench.runs.saved import load_run
from advbench.runtime.hashing import weights_digest
from attacks_pool import InputError
from defenses import registry

DIGEST = re.compile(r"(.+)@([0-9a-f]{12})")
"""A run with the first digits of the digest of its weights, as records name it."""


@runtime_checkable
class Employs(Protocol):
    """A defense that uses other models in training."""

    def employ(self, **models: nn.Module) -> None:
        """Take these models, by the parameters that name their runs."""


def load_employed(
    config: RunConfig, data: DataSet, runs_dir: Path
) -> tuple[RunConfig, dict[str, nn.Module], dict[str, str]]:
    """Load the models of the runs that the parameters of a defense name.

    Args:
        config: the resolved configuration.
        data: the data set of the run.
        runs_dir: where runs are looked for by name.

    Returns:
        The configuration in which each run is named as ``NAME@DIGEST``, the models by parameter, and the
        directories of their runs.

    Raises:
        RecordError, InputError: there is no such run, it has other weights than its digest says, or its
            model is for other images or classes.
    """
    models: dict[str, nn.Module] = {}
    places: dict[str, str] = {}
    params = dict(config.params)
    for key in registry.resolve(config.defense)[0].info.employs:
        if (given := params.get(key)) is None:
            continue
        named = DIGEST.fullmatch(given)
        run = load_run(find_run(str(Path(named[1] if named else given).expanduser()), [runs_dir]))
        shape, classes = (run.record.environment["data"].get(name) for name in ("shape", "classes"))
        if (tuple(shape or ()), classes) != (data.image_shape, data.num_classes):
            raise InputError(
                f"{key}={given}: its model takes images {tuple(shape or ())} of {classes} classes, "
                f"not {data.image_shape} of {data.num_classes}"
            )
        digest = weights_digest(run.model.state_dict())[:12]
        if named and named[2] != digest:
            raise InputError(f"{key}={given}: the weights of {run.path} are others, with digest {digest}")
        models[key], places[key] = run.model, str(run.path.resolve())
        params[key] = f"{run.path.resolve().name}@{digest}"
    return config.model_copy(update={"params": params}), models, places


def with_employed(config: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A run's ``config`` with the directories of the runs whose models it employs; digests are kept."""
    params = dict(config["params"])
    for key, place in places.items():
        named = DIGEST.fullmatch(str(params.get(key)))
        params[key] = f"{place}@{named[2]}" if named else place
    return {**config, "params": params}


def beside(config: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """The runs that a ``config`` employs, by parameter, as far as they are in the same directory as a run.

    Args:
        config: the values of a resolved configuration.
        directory: the directory of the run.
    """
    found: dict[str, str] = {}
    for key in registry.resolve(config["defense"])[0].info.employs:
        named = DIGEST.fullmatch(str(config["params"].get(key)))
        if named and (place := directory.resolve().parent / named[1]).is_dir():
            found[key] = str(place)
    return found
