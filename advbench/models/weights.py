"""Reads weights from files: safetensors, or a state dict without running code in a pickle."""

import difflib
import hashlib
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from advbench.models.archives import MAGIC, check_state
from attacks_pool.errors import InputError
from leaderboards.records.limits import weights_fault

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "weights", "params", "last"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema"),
)
"""Keys under which training programs keep the state dict of a checkpoint; averaged weights come last."""
PART = re.compile(r"-\d+-of-\d+$")
"""The end of the name of a file with a part of a model."""
MAY_BE_MISSING = "num_batches_tracked"
"""A counter of batch norm that computes nothing, and that old and converted checkpoints lack."""
COUNTERS = ("n_averaged",)
"""Tensors that averaging adds to a state dict, and that no model needs."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""The prefixes that data-parallel training, compiled training and wrappers add to every key."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name: safetensors, or a state dict that contains only tensors.

    Raises:
        InputError: the file is missing or damaged, is a program, or contains pickled objects, names that lead
            out of it, or no tensors.
    """
    if not path.is_file():
        what = "it is a folder: name one file" if path.is_dir() else "there is no such file"
        raise InputError(f"weights {path}: {what}; nothing is downloaded")
    if path.name.endswith(".index.json"):
        raise InputError(f"weights {path} list the parts of a model: save it as one file of safetensors")
    # Check the content, whatever the file's name, before torch opens the file.
    check_state(path, f"weights {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" and start.startswith(MAGIC):
        raise InputError(
            f"weights {path} are an archive as torch.save writes it: give its name the ending .pt"
        )
    # The header of safetensors is JSON after its length in eight bytes, and no pickle has "{" there.
    if path.suffix == ".safetensors" or (len(start) == 9 and start[6:] == b"\0\0{"):
        return read_safetensors(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"weights {path} are not a plain state dict ({type(error).__name__}), and other pickles are not "
            "read: save model.state_dict() as safetensors"
        ) from None
    return _unwrapped(content, path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        if fault := weights_fault(path):
            raise ValueError(fault)
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"weights {path} are missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"weights {path} cannot be read: {' '.join(str(error).split())}") from None


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(len(WRAPPERS)):
        if not isinstance(content, Mapping):
            break
        # A checkpoint may keep tensors such as its epoch beside the state dict.
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            nested = [value for value in content.values() if isinstance(value, Mapping)]
            inner = nested[0] if len(nested) == 1 else None
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if inner is None and tensors:
            return tensors
        content = inner
    raise InputError(f"weights {path} contain no named tensors, as model.state_dict() has")


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, *, spare: tuple[str, ...] = ()
) -> None:
    """Load ``state`` into ``model``, without the prefixes that wrappers add to every key.

    Tensors of other floating-point types are converted.

    Args:
        model: the model to load into.
        state: the result of :func:`read_state`.
        path: the name of the file in errors.
        spare: keys that may be missing or extra, such as a normalisation that the architecture adds.

    Raises:
        InputError: keys or sizes differ, or a tensor cannot be converted without loss of its meaning.
    """
    own = model.state_dict()
    candidate = min(_renamed(state), key=lambda renamed: len(set(renamed) ^ set(own)))
    lacking = {key for key in own if not key.endswith(MAY_BE_MISSING)}
    missing = sorted(lacking - set(candidate) - set(spare))
    extra = sorted(set(candidate) - set(own) - {*spare, *COUNTERS})
    sizes = [
        f"{key} {tuple(candidate[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in candidate and candidate[key].shape != own[key].shape
    ]
    types = [
        f"{key} {_kind(candidate[key])} for {_kind(own[key])}"
        for key in own
        if key in candidate and not _convertible(candidate[key], own[key])
    ]
    faults = [
        f"{len(found)} {what} ({', '.join(found[:2])}{', …' * (len(found) > 2)})"
        for what, found in (
            ("missing", missing),
            ("unknown", extra),
            ("of another size", sizes),
            ("of another type", types),
        )
        if found
    ]
    if faults:
        pairs = ((key, name) for key in missing for name in difflib.get_close_matches(key, extra, n=1))
        nearest = next((f"; nearest to {key} is {name}" for key, name in pairs), "")
        if missing and PART.search(path.stem):
            nearest = "; the file is a part of a model: save it as one file"
        raise InputError(f"weights {path} do not fit the model: {'; '.join(faults)}{nearest}")
    model.load_state_dict({key: value for key, value in candidate.items() if key in own}, strict=False)


def _convertible(given: Tensor, own: Tensor) -> bool:
    plain = given.layout is torch.strided and not given.is_quantized and not given.is_meta
    real = given.is_floating_point() if own.is_floating_point() else not given.is_complex()
    return plain and (real or given.dtype == own.dtype)


def _kind(tensor: Tensor) -> str:
    """The type of a tensor and, where it is no plain one, its layout: ``float32``, ``float32 sparse_coo``."""
    layout = "" if tensor.layout is torch.strided else f" {tensor.layout}"
    place = " without data" if tensor.is_meta else ""
    return f"{tensor.dtype}{layout}{place}".replace("torch.", "")


def _renamed(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state without each choice of known prefixes, and without the first words that all keys share."""
    for count in range(len(PREFIXES) + 1):
        for prefixes in itertools.permutations(PREFIXES, count):
            renamed = dict(state)
            for prefix in prefixes:
                renamed = {key.removeprefix(prefix): value for key, value in renamed.items()}
            yield renamed
    parts = [key.split(".") for key in state]
    shared = next(
        (depth for depth, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1),
        min(map(len, parts), default=1) - 1,
    )
    for count in range(1, shared + 1):
        yield {key.split(".", count)[count]: value for key, value in state.items()}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
