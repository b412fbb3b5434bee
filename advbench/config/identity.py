"""The identity of a run: a hash over everything that its numbers depend on."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from advbench.config.options import RunConfig
from advbench.data import DataSet
from advbench.models import MODELS
from advbench.runtime.hashing import code_version, digest
from attacks_pool import pool
from defenses import registry
from leaderboards.statistics.naming import attack_name

WHERE_NOT_WHAT = ("data_dir", "device", "threads")
"""Keys of a config about where a run is made; only their resolved effects are hashed."""
FACTS = ("code", "data", "torch", "device", "threads")
"""The inputs of an identity in addition to the config."""


def identity_of(
    config: RunConfig, data: DataSet, *, device: torch.device, threads: int, processes: int = 1
) -> str:
    """64 hexadecimal digits: equal if two runs must give the same numbers, bit for bit on a CPU.

    Args:
        config: the resolved configuration.
        data: the loaded data set, which counts by fingerprint, not by location.
        device: the device that the run uses.
        threads: the CPU threads that it uses, in each process.
        processes: the processes that train it.
    """
    return identity_from(
        config,
        data.name,
        {
            "code": code_version(*code_modules(config)),
            "data": data.fingerprint,
            "torch": torch.__version__,
            "device": device.type,
            "threads": threads,
            "processes": processes,
        },
    )


def identity_from(config: RunConfig, dataset: str, facts: Mapping[str, Any]) -> str:
    """The identity of a run made under these facts: ``code``, ``data``, ``torch``, ``device``, ``threads``.

    Where there are several ``processes``, their number counts too. ``dataset`` is the name of the loaded data
    set, without the location of a folder.
    """
    values = config.model_dump(mode="json")
    for key in WHERE_NOT_WHAT:
        del values[key]
    # A folder may have another path; the fingerprint covers its content.
    values["dataset"] = dataset
    several = {"processes": facts["processes"]} if facts.get("processes", 1) != 1 else {}
    return digest({"config": values, **{key: facts[key] for key in FACTS}, **several})


def code_modules(config: RunConfig) -> list[str]:
    """The modules whose code a run needs: of its model, its defense and its attacks."""
    model = "" if config.model in MODELS else config.model.partition(":")[0]
    attacks = attack_modules([*config.sequence, *config.unseen, *config.eval])
    return sorted({model, registry.resolve(config.defense)[0].__module__, *attacks} - {""})


def attack_modules(texts: Iterable[str]) -> set[str]:
    """The modules that the attacks of these texts come from."""
    return {pool.entry(attack_name(text)).source.partition(":")[0] for text in texts}
