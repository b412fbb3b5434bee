"""Reads weights from files: safetensors, or a state dict without running code in a pickle."""

import difflib
import hashlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from advbench.models.archives import check_state
from attacks_pool.errors import InputError
from leaderboards.records.limits import weights_fault

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "weights", "last"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict"),
)
"""Keys under which training programs keep the state dict of a checkpoint; averaged weights come last."""
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
        raise InputError(f"weights {path}: there is no such file; nothing is downloaded")
    # Check the content, whatever the file's name, before torch opens the file.
    check_state(path, f"weights {path}")
    if path.suffix == ".safetensors":
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
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if inner is None and tensors:
            return tensors
        content = inner
    raise InputError(f"weights {path} contain no named tensors, as model.state_dict() has")


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, *, spare: tuple[str, ...] = ()
) -> None:
    """Load ``state`` into ``model``, without the prefixes that wrappers add to every key.

    Args:
        model: the model to load into.
        state: the result of :func:`read_state`.
        path: the name of the file in errors.
        spare: keys that may be missing or extra, such as a normalisation that the architecture adds.

    Raises:
        InputError: keys or sizes differ.
    """
    own = model.state_dict()
    candidate = min(_renamed(state), key=lambda renamed: len(set(renamed) ^ set(own)))
    missing = sorted(set(own) - set(candidate) - set(spare))
    extra = sorted(set(candidate) - set(own) - {*spare, *COUNTERS})
    sizes = [
        f"{key} {tuple(candidate[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in candidate and candidate[key].shape != own[key].shape
    ]
    faults = [
        f"{len(found)} {what} ({', '.join(found[:2])}{', …' * (len(found) > 2)})"
        for what, found in (("missing", missing), ("unknown", extra), ("of another size", sizes))
        if found
    ]
    if faults:
        pairs = ((key, name) for key in missing for name in difflib.get_close_matches(key, extra, n=1))
        nearest = next((f"; nearest to {key} is {name}" for key, name in pairs), "")
        raise InputError(f"weights {path} do not fit the model: {'; '.join(faults)}{nearest}")
    model.load_state_dict({key: value for key, value in candidate.items() if key in own}, strict=False)


def _renamed(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for count in range(len(PREFIXES) + 1):
        for prefixes in itertools.permutations(PREFIXES, count):
            renamed = dict(state)
            for prefix in prefixes:
                renamed = {key.removeprefix(prefix): value for key, value in renamed.items()}
            yield renamed


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
