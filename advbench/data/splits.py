"""Makes fixed, stratified splits from a pool of raw images, and the fingerprint that identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.data.sets import DataSet, Defaults, Split
from attacks_pool.errors import InputError

TEST_SEED = 1797
VALIDATION_SEED = 10


@dataclass(frozen=True, eq=False)
class SplitPool:
    """Raw images: ``pixels`` uint8 (N, C, H, W) in [0, ``scale``], ``labels`` int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    scale: int = 255


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """A fixed order of 0..n-1, the same on every machine and for every library version.

    NumPy guarantees the stream of ``RandomState``; ``Generator``, torch and scikit-learn may change theirs.
    """
    return np.random.RandomState(seed).permutation(n).astype(np.int64)


def stratified_holdout(
    labels: NDArray[np.int64], size: int, *, classes: Sequence[str], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out ``size`` of the points, each class in proportion.

    Points are allotted to classes by largest remainder, but every class keeps and gives at least one point,
    so that many tiny classes may make the held-out part larger than ``size``.

    Returns:
        The remaining indices, ascending, and the held-out ones, shuffled so that any first n are fair.

    Raises:
        InputError: A class has fewer than two points and so cannot be in both parts.
    """
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count < 2:
            raise InputError(
                f"class {name!r} has {count} training image{'s' * (count != 1)}, but 2 are needed: "
                "one to train on and one for the validation split"
            )
    total = len(labels)
    seats = [size * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda k: (-(size * counts[k] % total), k))
    for k in by_remainder[: size - sum(seats)]:
        seats[k] += 1
    order = permutation(total, seed)
    # Slicing one shuffled order keeps it shuffled: the held-out part needs no second shuffle.
    held = np.zeros(total, dtype=bool)
    for k, count in enumerate(counts):
        held[order[labels[order] == k][: min(max(seats[k], 1), count - 1)]] = True
    return np.flatnonzero(~held).astype(np.int64), order[held[order]]


def fingerprint(pool: SplitPool, parts: Sequence[NDArray[np.int64]]) -> str:
    """16 hexadecimal digits of the SHA-256 over raw pixels, labels, class names and split indices."""
    digest = hashlib.sha256(f"{pool.pixels.shape} {pool.scale} {pool.classes!r}".encode())
    digest.update(np.ascontiguousarray(pool.pixels).data)
    for numbers in (pool.labels, *parts):
        # Use little-endian on every machine; the length separates one array from the next.
        digest.update(f" {len(numbers)} ".encode() + numbers.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def assemble(
    name: str, pool: SplitPool, train: NDArray[np.int64], test: NDArray[np.int64], defaults: Defaults
) -> DataSet:
    """The data set that trains on ``pool[train]`` and tests on ``pool[test]``, in the order given.

    A stratified tenth of ``train`` becomes the validation split.

    Raises:
        InputError: A class has fewer than two training images.
    """
    kept, held = stratified_holdout(
        pool.labels[train], round(len(train) / 10), classes=pool.classes, seed=VALIDATION_SEED
    )
    parts = (train[kept], train[held], test)
    splits = [_split(pool, part) for part in parts]
    return DataSet(
        name,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        classes=pool.classes,
        fingerprint=fingerprint(pool, parts),
        **vars(defaults),
    )


def _split(pool: SplitPool, indices: NDArray[np.int64]) -> Split:
    x = torch.from_numpy(pool.pixels[indices]).to(torch.float32).div_(pool.scale)
    return Split(x=x, y=torch.from_numpy(pool.labels[indices]))
