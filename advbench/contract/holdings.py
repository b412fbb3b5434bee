"""What an object holds: every tensor and array that its attributes lead to."""

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
    """Name and tensor of all that ``defense`` holds: weights, whatever else it keeps, ``training_state()``.

    Attributes are followed through modules, containers and objects; so are attributes of its class. What code
    keeps in closures and in variables of its module is not seen.
    """
    seen: dict[int, Any] = {}
    yield from _walk(defense, "self", seen)
    for kind in type(defense).__mro__:
        if kind.__module__.partition(".")[0] not in ("torch", "builtins") and kind is not Defense:
            kept = {name: value for name, value in vars(kind).items() if not inspect.isroutine(value)}
            yield from _walk(kept, kind.__name__, seen)
    yield from _walk(defense.training_state(), "training_state()", seen)


def held_bytes(defense: Defense) -> int:
    """Bytes of all that it holds; shared memory counts once.

    What ``training_state()`` copies of a tensor that is an attribute too counts again: that is constant.
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
    # Kept, so that no later object gets the number of one that is gone.
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
