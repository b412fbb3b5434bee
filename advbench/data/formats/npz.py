"""Arrays of images and labels in one ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from advbench.data.formats.arrays import from_arrays
from advbench.data.splits import RawData
from attacks_pool.errors import InputError

NAMES = {
    "x_train": ("x_train", "train_x", "train_images", "X_train"),
    "y_train": ("y_train", "train_y", "train_labels", "Y_train"),
    "x_test": ("x_test", "test_x", "test_images", "X_test"),
    "y_test": ("y_test", "test_y", "test_labels", "Y_test"),
}
"""Names of the four arrays that are recognised; the first is the one that errors name."""


def load(path: Path) -> RawData:
    """Load ``x_test`` and ``y_test``, and ``x_train`` and ``y_train`` where they exist.

    Images are (N, H, W), (N, C, H, W) or (N, H, W, C): bytes, or floats in [0, 1]. An array ``classes`` may
    name the classes. The test set keeps its order.

    Raises:
        InputError: The file is missing or damaged, or arrays are missing or of another kind.
    """
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"no file {path}: expected an .npz file with {', '.join(NAMES)}")
    try:
        stored: Any = np.load(path, allow_pickle=False)
        if not isinstance(stored, NpzFile):
            raise InputError(f"{path} holds a single array, as np.save writes it: expected np.savez's file")
        with stored:
            found = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path}: {str(error).partition(chr(10))[0]}") from error
    arrays = {name: _named(found, names) for name, names in NAMES.items()}
    for name in ("x_test", "y_test"):
        if arrays[name] is None:
            there = ", ".join(sorted(found)) or "nothing"
            raise InputError(f"{path} has no array {name}: it has {there}; expected {', '.join(NAMES)}")
    if (arrays["x_train"] is None) != (arrays["y_train"] is None):
        raise InputError(f"{path} has one of x_train and y_train; expected both, or neither")
    names = found.get("classes")
    return from_arrays(
        f"npz:{path.name}",
        train=None if arrays["x_train"] is None else (arrays["x_train"], arrays["y_train"]),
        test=(arrays["x_test"], arrays["y_test"]),
        classes=None if names is None else _class_names(path, names),
    )


def _class_names(path: Path, names: NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1:
        raise InputError(f"{path}: classes has shape {names.shape}; expected one name for each class")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def _named(found: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    return next((found[name] for name in names if name in found), None)
