"""Arrays of images and labels, checked and brought to one form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from advbench.data.pixels import Array, ArraySource
from advbench.data.splits import RawData, SplitPool
from attacks_pool.errors import InputError

Pair = tuple[Any, Any]

MOST_CLASSES = 100_000
"""A label beyond this is an identifier, for which numbering all classes up to it would fill the memory."""


def from_arrays(
    name: str, *, train: Pair | None, test: Pair, classes: tuple[str, ...] | None = None
) -> RawData:
    """A data set from pairs of images and labels.

    Args:
        name: the name of the data set.
        train: images and labels to train on, or None.
        test: images and labels to test on.
        classes: the names of the classes; by default the numbers from 0 to the largest label.

    Raises:
        InputError: an array is not one of images, or not one of labels.
    """
    parts = [("test", *test)] if train is None else [("train", *train), ("test", *test)]
    images = [as_images(f"{name}, {part}", x) for part, x, _ in parts]
    labels = [as_labels(f"{name}, {part}", y, len(x)) for (part, _, y), x in zip(parts, images, strict=True)]
    if len({(x.shape[1:], x.dtype) for x in images}) > 1:
        kinds = " and ".join(f"{x.dtype} of shape {x.shape[1:]}" for x in images)
        raise InputError(f"{name}: training and test images differ: {kinds}")
    most = max(int(y.max()) for y in labels) + 1
    names = classes or tuple(str(label) for label in range(most))
    if most > len(names) or len(names) < 2:
        raise InputError(f"{name}: labels go up to {most - 1}, but there are {len(names)} classes")
    count = 0 if train is None else len(images[0])
    every: Any = np.concatenate(images)
    pool = SplitPool(ArraySource(every), np.concatenate(labels), names)
    return RawData(name, pool, np.arange(count), np.arange(count, len(pool.labels)))


def as_images(where: str, given: Any) -> Array:
    """Images as (N, C, H, W): bytes, or float32 in [0, 1].

    Raises:
        InputError: the array has another number of dimensions or channels, another type, or values outside.
    """
    x: NDArray[Any] = np.asarray(given)
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or not len(x):
        raise InputError(
            f"{where}: images of shape {x.shape}; expected (N, H, W), (N, C, H, W) or (N, H, W, C)"
        )
    if x.shape[1] not in (1, 3):
        if x.shape[3] not in (1, 3):
            raise InputError(f"{where}: images of shape {x.shape} have neither 1 nor 3 channels")
        x = x.transpose(0, 3, 1, 2)
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if np.issubdtype(x.dtype, np.integer):
        if x.min() < 0 or x.max() > 255:
            raise InputError(f"{where}: values from {x.min()} to {x.max()}; expected bytes from 0 to 255")
        return np.ascontiguousarray(x.astype(np.uint8))
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{where}: images of type {x.dtype}; expected bytes, or floats in [0, 1]")
    if not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
        raise InputError(
            f"{where}: values from {x.min():g} to {x.max():g}; expected floats in [0, 1] (attacks work "
            "on images "
            "in [0, 1]: put any normalisation inside the model), or bytes"
        )
    return np.ascontiguousarray(x.astype(np.float32))


def as_labels(where: str, given: Any, count: int) -> NDArray[np.int64]:
    """Labels as int64 (N,).

    Raises:
        InputError: they are not whole numbers from 0 on, not one for each of ``count`` images, or so large
            that they cannot number classes.
    """
    y: NDArray[Any] = np.asarray(given)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer):
        raise InputError(
            f"{where}: labels of type {y.dtype} and shape {y.shape} for {count} images; expected a whole "
            "number "
            "for each"
        )
    if y.min() < 0:
        raise InputError(f"{where}: a label is {y.min()}; expected numbers from 0 on")
    if y.max() >= MOST_CLASSES:
        raise InputError(
            f"{where}: a label is {y.max()}; expected classes numbered from 0, at most {MOST_CLASSES:,}"
        )
    return y.astype(np.int64)
