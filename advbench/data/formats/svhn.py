"""SVHN, street-view house numbers, from the MATLAB files of its authors' cropped format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from advbench.data.formats.locate import locate
from advbench.data.pixels import ArraySource
from advbench.data.splits import RawData, SplitPool
from attacks_pool.errors import InputError

CLASSES = tuple(str(digit) for digit in range(10))


def load(name: str, data_dir: Path | None) -> RawData:
    """Load ``train_32x32.mat`` and ``test_32x32.mat``; the files' label 10 is the digit 0.

    The test set keeps its official order.

    Raises:
        InputError: A file is missing, damaged, or holds something else.
    """
    parts = [
        _part(name, locate(name, data_dir, f"{part}_32x32.mat", folders=("svhn", "SVHN")))
        for part in ("train", "test")
    ]
    images = ArraySource(np.concatenate([pixels for pixels, _ in parts]))
    pool = SplitPool(images, np.concatenate([labels for _, labels in parts]), CLASSES)
    count = len(parts[0][1])
    return RawData(name, pool, np.arange(count), np.arange(count, len(pool.labels)))


def _part(name: str, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        found = loadmat(path)
        pixels, labels = found["X"], found["y"].ravel().astype(np.int64)
    except KeyError as error:
        raise InputError(f"data set {name!r}: {path} has no variable {error}: expected X and y") from None
    except Exception as error:  # the parser raises many kinds on damaged files
        raise InputError(
            f"data set {name!r}: cannot read {path}: {str(error).partition(chr(10))[0]}"
        ) from error
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or pixels.shape[:3] != (32, 32, 3)
        or pixels.shape[3] != len(labels)
    ):
        raise InputError(
            f"data set {name!r}: {path} holds X of shape {pixels.shape} and type {pixels.dtype} and "
            f"{len(labels)} "
            "labels; expected bytes of shape (32, 32, 3, n) and a label for each"
        )
    if not len(labels) or labels.min() < 1 or labels.max() > 10:
        raise InputError(f"data set {name!r}: {path} has labels outside 1 to 10, or none")
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels % 10
