"""State of an optimizer with the names of its parameters, for snapshots."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attacks_pool.errors import InputError
from defenses.training.packing import detached, map_tensors


def _names(optimizer: torch.optim.Optimizer, defense: nn.Module) -> list[str]:
    """Parameter names in the optimizer's order; parameters that the defense does not name get a number."""
    known = {id(parameter): name for name, parameter in defense.named_parameters()}
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [known.get(id(parameter), f"#{place}") for place, parameter in enumerate(every)]


def optimizer_state(optimizer: torch.optim.Optimizer, defense: nn.Module) -> dict[str, Any]:
    """The optimizer's state as copies, with the names of its parameters in order under ``names``."""
    state: dict[str, Any] = map_tensors(optimizer.state_dict(), detached)
    return {**state, "names": _names(optimizer, defense)}


def load_optimizer(optimizer: torch.optim.Optimizer, defense: nn.Module, saved: dict[str, Any]) -> None:
    """Load momentum and similar state by parameter name, since a rebuilt defense may have another order.

    Raises:
        InputError: the state has other parameters.
    """
    now, before = _names(optimizer, defense), saved["names"]
    groups = [len(group["params"]) for group in optimizer.param_groups]
    if sorted(now) != sorted(before) or groups != [len(group["params"]) for group in saved["param_groups"]]:
        raise InputError("this snapshot's optimizer has other parameters than the defense")
    places = {before.index(name): place for place, name in enumerate(now)}
    state = {places[place]: values for place, values in saved["state"].items()}
    numbers = iter(range(len(now)))
    saved_groups = [
        {**group, "params": [next(numbers) for _ in group["params"]]} for group in saved["param_groups"]
    ]
    optimizer.load_state_dict({"state": map_tensors(state, detached), "param_groups": saved_groups})
