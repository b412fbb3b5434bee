"""Makes fixed, stratified splits from a pool of raw images, and the fingerprint that identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.data.choices import DataChoices
from advbench.data.image_files import CHUNK, fit, kept
from advbench.data.pixels import ImageSource, Pixels
from advbench.data.sets import DataSet, Groups, Split, defaults_for
from attacks_pool.errors import InputError, unknown

TEST_SEED = 1797
VALIDATION_SEED = 10
SUBSET_SEED = 11


FINGERPRINT_BYTES = 2**30
"""Up to this size a fingerprint covers every image; beyond it, ``FINGERPRINT_IMAGES`` of them."""
FINGERPRINT_IMAGES = 1000


@dataclass(frozen=True, eq=False)
class SplitPool:
    """Images before they are split: a source of N images, ``labels`` int64 (N,), and names of classes."""

    images: ImageSource
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def small(self) -> bool:
        """Whether the fingerprint covers every image, which does not depend on the machine."""
        return len(self.images) * int(np.prod(self.images.shape)) <= FINGERPRINT_BYTES


@dataclass(frozen=True, eq=False)
class RawData:
    """Images of one data set, and which of them are for training and for testing, in a fixed order.

    ``groups`` are those of all images, if they come in groups.
    """

    name: str
    pool: SplitPool
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    groups: Groups | None = None


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
    """16 hexadecimal digits of the SHA-256 over raw pixels, labels, class names and split indices.

    Of a large pool, it covers the names and sizes of the files, where there are files, and evenly
    spaced images.
    """
    images = pool.images
    shape = (len(images), *images.shape)
    digest = hashlib.sha256(f"{shape} {getattr(images, 'scale', 255)} {pool.classes!r}".encode())
    rows = np.arange(len(images))
    if not pool.small:
        digest.update(getattr(images, "listing", b""))
        rows = np.linspace(0, len(images) - 1, FINGERPRINT_IMAGES).astype(np.int64)
    for start in range(0, len(rows), CHUNK):
        digest.update(np.ascontiguousarray(images.read(rows[start : start + CHUNK])).data)
    for numbers in (pool.labels, *parts):
        # Use little-endian on every machine; the length separates one array from the next.
        digest.update(f" {len(numbers)} ".encode() + numbers.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def assemble(found: RawData, choices: DataChoices) -> DataSet:
    """The data set that trains on ``pool[train]`` and tests on ``pool[test]``, in the order given.

    A stratified tenth of ``train`` becomes the validation split. Without training images, both are empty.

    Raises:
        InputError: A class has fewer than two training images, or a choice does not fit the data.
    """
    found = _of_classes(found, choices.classes)
    source = fit(found.pool.images, size=choices.image_size, channels=choices.channels)
    pool = replace(found.pool, images=kept(source, choices.limit))
    train = _fewer(found, choices.train_points)
    left, held = _without_validation(pool, train)
    parts = (left, held, found.test)
    splits = [Split(Pixels(pool.images, part), torch.from_numpy(pool.labels[part])) for part in parts]
    defaults = defaults_for(source.shape)
    # Images in memory no longer know their files, which the fingerprint of a large pool covers.
    asked = pool if pool.small else replace(pool, images=source)
    return DataSet(
        name=found.name,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        classes=pool.classes,
        fingerprint=fingerprint(asked, parts),
        identified_by="pixels" if pool.small else "sample",
        groups=None if found.groups is None else found.groups.of(found.test),
        **vars(defaults),
    )


def _without_validation(
    pool: SplitPool, train: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not len(train):
        return train, train
    kept, held = stratified_holdout(
        pool.labels[train], round(len(train) / 10), classes=pool.classes, seed=VALIDATION_SEED
    )
    return train[kept], train[held]


def _fewer(found: RawData, points: int | None) -> NDArray[np.int64]:
    """``points`` of the training images, each class in proportion; the same for every run."""
    if points is None or points == len(found.train):
        return found.train
    if points > len(found.train):
        raise InputError(
            f"train_points={points} exceeds the {len(found.train)} training images of {found.name!r}"
        )
    labels = found.pool.labels[found.train]
    _, some = stratified_holdout(labels, points, classes=found.pool.classes, seed=SUBSET_SEED)
    return found.train[np.sort(some)]


def _of_classes(found: RawData, wanted: int | tuple[str, ...] | None) -> RawData:
    """The points of some classes, which are numbered anew in their old order."""
    if wanted is None:
        return found
    names = found.pool.classes
    if isinstance(wanted, int):
        if wanted > len(names):
            raise InputError(f"classes={wanted} exceeds the {len(names)} classes of {found.name!r}")
        chosen = set(names[:wanted])
    else:
        for name in wanted:
            if name not in names:
                raise unknown("class", name, names, see=f"data set {found.name!r} has {len(names)} classes")
        chosen = set(wanted)
    if len(chosen) < 2:
        raise InputError(
            f"data set {found.name!r}: {len(chosen)} class chosen; a classifier needs two or more"
        )
    places = [place for place, name in enumerate(names) if name in chosen]
    number = np.full(len(names), -1, dtype=np.int64)
    number[places] = np.arange(len(places))
    labels = number[found.pool.labels]
    pool = replace(found.pool, labels=labels, classes=tuple(names[place] for place in places))
    train, test = (part[labels[part] >= 0] for part in (found.train, found.test))
    return replace(found, pool=pool, train=train, test=test)
