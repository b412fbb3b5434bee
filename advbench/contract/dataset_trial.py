"""The promises of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from advbench.contract.compare import BrokenPromiseError
from advbench.data import DataSet, Split

LOOKED_AT = 200
"""Images of each split that are read."""


@dataclass(frozen=True)
class DatasetTrial:
    """A data set that is being checked."""

    data: DataSet

    @property
    def parts(self) -> dict[str, Split]:
        """Its splits that have points."""
        named = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        return {name: split for name, split in named.items() if len(split)}


def sizes(trial: DatasetTrial) -> str:
    """There are points to test on, and two classes or more.

    Raises:
        BrokenPromiseError: there are not.
    """
    if not len(trial.data.test):
        raise BrokenPromiseError("there are no test points")
    shape = "×".join(map(str, trial.data.image_shape))
    counts = ", ".join(f"{len(split):,} {name}" for name, split in trial.parts.items())
    only = "" if len(trial.data.train) else "; to evaluate on, not to train on"
    return f"{counts}; {trial.data.num_classes} classes; {shape}{only}"


def images(trial: DatasetTrial) -> str:
    """Images are finite float32 in [0, 1], of one shape, and not all alike.

    Raises:
        BrokenPromiseError: they are not.
    """
    low, high = 1.0, 0.0
    for name, split in trial.parts.items():
        x = split.images[:LOOKED_AT]
        if x.dtype != torch.float32 or not bool(x.isfinite().all()):
            raise BrokenPromiseError(f"{name}: images of {x.dtype}, or not finite")
        low, high = min(low, float(x.min())), max(high, float(x.max()))
        if len(x) > 1 and bool((x == x[:1]).all()):
            raise BrokenPromiseError(f"{name}: the first {len(x)} images are all the same")
    if low < 0 or high > 1:
        raise BrokenPromiseError(f"values from {low:g} to {high:g}, expected [0, 1]")
    if high <= 2 / 255:
        raise BrokenPromiseError(f"no value is above {high:g}: images in [0, 1] were divided by 255 twice")
    return f"values from {low:.3g} to {high:.3g}"


def labels(trial: DatasetTrial) -> str:
    """Every class has test points and, if there are training points, training and validation points.

    Raises:
        BrokenPromiseError: one has none.
    """
    data = trial.data
    for name, split in trial.parts.items():
        counts = split.y.bincount(minlength=data.num_classes)
        if len(counts) > data.num_classes:
            raise BrokenPromiseError(
                f"{name}: labels go up to {len(counts) - 1}, with {data.num_classes} classes"
            )
        if not bool(counts.all()):
            missing = data.classes[int((counts == 0).nonzero()[0])]
            raise BrokenPromiseError(f"{name}: class {missing!r} has no points")
    counts = data.test.y.bincount()
    return f"{int(counts.min())} to {int(counts.max())} test points a class"


def order(trial: DatasetTrial) -> str:
    """The first test points are of several classes, since ``--points`` takes the first ones.

    Raises:
        BrokenPromiseError: they are all of one class, as where files are sorted by class.
    """
    first = trial.data.test.y[: max(10, 2 * trial.data.num_classes)]
    classes = len(set(first.tolist()))
    if classes < 2:
        raise BrokenPromiseError(
            f"the first {len(first)} test points are all of class {trial.data.classes[int(first[0])]!r}: "
            "shuffle them, always in the same way"
        )
    return f"the first {len(first)} test points are of {classes} classes"


def splits(trial: DatasetTrial) -> str:
    """No test image is a training image, among those that are read.

    Raises:
        BrokenPromiseError: one is.
    """
    seen: set[bytes] = set()
    for name, split in trial.parts.items():
        here = {image.numpy().tobytes() for image in split.images[:LOOKED_AT].cpu()}
        if again := len(seen & here):
            raise BrokenPromiseError(
                f"{again} of the first {LOOKED_AT} images of {name} are in another split too"
            )
        seen |= here
    return f"{len(seen)} images, none in two splits"


def repeatable(trial: DatasetTrial) -> str:
    """Reading an image again, alone or with others, gives the same values.

    Raises:
        BrokenPromiseError: it does not, as where images are augmented at random.
    """
    for name, split in trial.parts.items():
        count = min(len(split), 20)
        together = split.images[:count]
        alone = torch.cat([split.images[row : row + 1] for row in range(count - 1, -1, -1)]).flip(0)
        if not torch.equal(together, alone):
            raise BrokenPromiseError(
                f"{name}: an image has other values when it is read again: augment in training "
                "(--set augmentation=flip), not here"
            )
    return "the same values at every reading"
