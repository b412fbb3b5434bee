"""Hashes of configurations, weights and code."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = ("advbench", "attacks_pool", "defenses", "leaderboards")


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(state: Mapping[str, Any]) -> str:
    """The SHA-256 over names, types, shapes and bytes of the tensors of a state dict.

    State dicts of foreign models may contain quantised tensors, alone or in tuples; these count by value.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        for value in _tensors(state[name]):
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            plain = value.detach().cpu()
            plain = (plain.dequantize() if plain.is_quantized else plain).contiguous()
            found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def code_version(*modules: str) -> str:
    """The SHA-256 over the source of this suite, and of the packages that the given ``modules`` belong to.

    A module without a file, or one that cannot be imported, counts by its name. Sources are read once per
    process, because later edits do not affect the running code.
    """
    return _code_version(*(name for name in modules if name.partition(".")[0] not in PACKAGES))


@functools.lru_cache(maxsize=64)
def _code_version(*foreign: str) -> str:
    found = hashlib.sha256()
    for name in (*PACKAGES, *foreign):
        for path, content in _sources(name):
            found.update(f"{path}\x1f{hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()


def _sources(module: str) -> Iterable[tuple[str, bytes]]:
    """The relative path and content of each source file of the module's package, or of a single module."""
    top = module.partition(".")[0]
    try:
        loaded = sys.modules.get(top) or importlib.import_module(top)
    except Exception:  # a foreign package may fail; the code that needs it reports the fault
        return [(module, b"")]
    file = getattr(loaded, "__file__", None)
    if file is None:
        return [(module, b"")]
    if not Path(file).name.startswith("__init__."):
        return [(Path(file).name, Path(file).read_bytes())]
    root = Path(file).parent
    return [(f"{top}/{path.relative_to(root)}", path.read_bytes()) for path in sorted(root.rglob("*.py"))]
