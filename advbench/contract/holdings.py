"""Finds every tensor and array that an object's attributes reach."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from defenses import Defense

CODE = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, torch.Generator)


def holdings(defense: Defense) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors that ``defense`` holds: weights, other attributes, ``training_state()``.

    The search follows attributes of the defense and its class through modules, containers and objects. It
    does not see closures and module variables.
    """
    seen: dict[int, Any] = {}
    yield from _walk(defense, "self", seen)
    for kind in type(defense).__mro__:
        if kind.__module__.partition(".")[0] not in ("torch", "builtins") and kind is not Defense:
            kept = {name: value for name, value in vars(kind).items() if not inspect.isroutine(value)}
            yield from _walk(kept, kind.__name__, seen)
    yield from _walk(defense.training_state(), "training_state()", seen)


def held_bytes(defense: Defense) -> int:
    """The bytes of everything that the defense holds; shared memory counts once.

    Copies that ``training_state()`` makes of attributes count again, which adds a constant.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for _, tensor in holdings(defense)
        if tensor.layout == torch.strided
    }
    return sum(storages.values())


def _walk(value: Any, place: str, seen: dict[int, Any]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, CODE) or id(value) in seen:
        return
    # Keep a reference, so that no later object reuses the id of a deleted one.
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            yield place, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, nn.Module):
        yield from _walk(dict(vars(value)), place, seen)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _walk(one, f"{place}.{key}", seen)
    elif isinstance(value, str | bytes | int | float):
        return
    elif hasattr(value, "__iter__") and hasattr(value, "__len__"):
        for number, one in enumerate(value):
            yield from _walk(one, f"{place}[{number}]", seen)
    elif hasattr(value, "__dict__"):
        yield from _walk(dict(vars(value)), place, seen)
