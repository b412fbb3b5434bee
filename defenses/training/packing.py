"""Saves nested values and tensors in one safetensors file; no pickle, so loading cannot run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

TREE = "tree"
"""Key in the safetensors metadata for everything except the tensors, as JSON."""


class PackingError(ValueError):
    """A value cannot be packed, or bytes are not a packed value."""


def pack(tree: Any) -> bytes:
    """Pack dicts (with text or integer keys), lists, tuples, None, numbers, texts and tensors into bytes.

    Tensors keep their strides.

    Raises:
        PackingError: there is a value of another type; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, tensors, "")
    return save(tensors, metadata={TREE: json.dumps(structure)})


def unpack(data: bytes, device: torch.device | str = "cpu") -> Any:
    """Restore the value that was packed; tensors that were not on the CPU are moved to ``device``.

    Raises:
        PackingError: the bytes are damaged or not a packed value.
    """
    try:
        tensors = load(data)
        return _decode(json.loads(_metadata(data)[TREE]), tensors, torch.device(device))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackingError(f"not a packed value: {' '.join(str(error).split())}") from error


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Copy the containers of ``tree`` and apply ``change`` to each tensor."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        changed = [map_tensors(value, change) for value in tree]
        return changed if isinstance(tree, list) else tuple(changed)
    return tree


def detached(tensor: Tensor) -> Tensor:
    """A copy that training cannot change."""
    return tensor.detach().clone()


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in a safetensors header; the first 8 bytes hold the header's length."""
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
        # Copy every tensor: tied tensors share memory, which safetensors rejects.
        copy = value.detach().cpu().clone()
        tensors[name] = copy.contiguous()
        found: dict[str, Any] = {"tensor": name, "moved": value.device.type != "cpu"}
        # The result of a convolution may depend on its input's strides, which safetensors does not store.
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
