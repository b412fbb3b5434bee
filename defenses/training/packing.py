"""Nested values with tensors in them as one safetensors file: no pickle, so nothing in it can run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

TREE = "tree"
"""The key of the safetensors metadata that holds everything but the tensors, as JSON."""


class PackingError(ValueError):
    """A value that cannot be packed, or bytes that are no packed value."""


def pack(tree: Any) -> bytes:
    """The bytes of dicts (keys: text or whole numbers), lists, tuples, None, numbers, texts and tensors.

    Tensors come back with the strides that they had.

    Raises:
        PackingError: anything else is in it; says where.
    """
    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, tensors, "")
    return save(tensors, metadata={TREE: json.dumps(structure)})


def unpack(data: bytes, device: torch.device | str = "cpu") -> Any:
    """What `pack` was given; tensors that did not lie on the CPU come back on ``device``.

    Raises:
        PackingError: the bytes are damaged or something else.
    """
    try:
        tensors = load(data)
        return _decode(json.loads(_metadata(data)[TREE]), tensors, torch.device(device))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackingError(f"not a packed value: {' '.join(str(error).split())}") from error


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with ``change`` applied to each tensor; containers are copied."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        changed = [map_tensors(value, change) for value in tree]
        return changed if isinstance(tree, list) else tuple(changed)
    return tree


def detached(tensor: Tensor) -> Tensor:
    """A copy that training cannot move."""
    return tensor.detach().clone()


def _metadata(data: bytes) -> dict[str, str]:
    """The safetensors header's own metadata; its first 8 bytes are the header's length."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def _usual(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a new tensor of this shape."""
    return torch.empty(tensor.shape, device="meta").stride()


def _encode(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy each: tied tensors share memory, which safetensors refuses.
        copy = value.detach().cpu().clone()
        tensors[name] = copy.contiguous()
        found: dict[str, Any] = {"tensor": name, "moved": value.device.type != "cpu"}
        # A convolution may round otherwise where its input lies otherwise, and safetensors keeps no strides.
        return found if copy.stride() == _usual(copy) else {**found, "stride": list(copy.stride())}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (int, str):
                raise PackingError(f"{place or 'value'} has the key {key!r}: expected text or a whole number")
        return {"dict": [[key, _encode(one, tensors, f"{place}.{key}")] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(one, tensors, f"{place}.{index}") for index, one in enumerate(value)]}
    raise PackingError(f"{place.lstrip('.') or 'value'} is a {type(value).__name__}, which cannot be saved")


def _decode(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        if "stride" in value:
            tensor = torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype).copy_(tensor)
        return tensor.to(device) if value["moved"] else tensor
    if "dict" in value:
        return {key: _decode(one, tensors, device) for key, one in value["dict"]}
    if "list" in value:
        return [_decode(one, tensors, device) for one in value["list"]]
    return tuple(_decode(one, tensors, device) for one in value["tuple"])
