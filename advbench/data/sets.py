"""The classes of loaded data sets, and the defaults that follow from the shape of their images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeGuard, cast

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from advbench.data.pixels import ImageArray, Pixels, Rows


class Split:
    """Labelled images.

    Args:
        x: float32 (N, C, H, W) in [0, 1]: a tensor, or an array that is decoded where it is indexed.
        y: int64 (N,).

    Attributes:
        images: ``x`` as given; indexing it gives float32 tensors.
        y: the labels, always in memory.
    """

    def __init__(self, x: ImageArray, y: Tensor) -> None:
        self.images = x
        self.y = y

    def __len__(self) -> int:
        return int(self.y.shape[0])

    @cached_property
    def x(self) -> Tensor:
        """All images as one tensor, float32 (N, C, H, W), which stays in memory once it was asked for."""
        return self.images[:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def first(self, count: int) -> Split:
        """The first ``count`` points; no image is read."""
        few = self.images.head(count) if _lazy(self.images) else self.images[:count]
        return Split(few, self.y[:count])

    def take(self, rows: Rows) -> Split:
        """The points ``rows``, with their images in memory."""
        return Split(self.images[rows], self.y[rows])

    def to(self, device: torch.device | str) -> Split:
        """These points for work on ``device``; images that are not in memory stay where they are."""
        images = self.images
        moved: ImageArray = images.to(device) if _lazy(images) else cast("Tensor", images).to(device)
        return Split(moved, self.y.to(device))


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of images that are reported one by one, such as each corruption at each severity.

    Attributes:
        title: What the table of their accuracies shows.
        names: The row and the column of each group in that table.
        numbers: (N,) the group of each image.
    """

    title: str
    names: tuple[tuple[str, str], ...]
    numbers: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Groups:
        """The groups of the images ``rows``."""
        return replace(self, numbers=self.numbers[rows])


@dataclass(frozen=True, eq=False)
class DataSet:
    """Three disjoint splits of one data set.

    Attributes:
        name: As listed by ``advbench datasets``; for a folder, ``folder:`` and its last path component.
        train: The points for training, in a fixed order.
        validation: A stratified tenth of the training images, for hyper-parameters and selection.
        test: The points for evaluation; its first n points are a fair sample for every n.
        classes: The class names; label k is ``classes[k]``.
        fingerprint: 16 hexadecimal digits of the SHA-256 of pixels, labels, split indices and classes.
        identified_by: ``pixels`` if the fingerprint covers every image; ``sample`` if it covers some of them
            and the names and sizes of the files.
        groups: The groups of the test points, if accuracy is reported by group.
        budget: The row of default eps: ``digits``, ``mnist``, ``cifar10`` or ``imagenet``.
        augmentation: The default augmentations in training, of ``crop`` and ``flip``.
        default_model: A model text that ``advbench.models.build_model`` takes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    budget: str
    augmentation: tuple[str, ...]
    default_model: str
    identified_by: str = "pixels"
    groups: Groups | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.test.shape

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


@dataclass(frozen=True)
class Defaults:
    """The defaults of a data set for runs on it; see the same names in ``DataSet``."""

    budget: str
    augmentation: tuple[str, ...]
    default_model: str


def defaults_for(shape: tuple[int, int, int]) -> Defaults:
    """The defaults for images of ``shape`` (C, H, W): those of the most similar known data set."""
    channels, size = shape[0], max(shape[1:])
    if channels == 1:
        return Defaults("digits", (), "digits-cnn") if size <= 12 else Defaults("mnist", (), "lenet")
    if size <= 96:
        return Defaults("cifar10", ("crop", "flip"), "resnet18")
    # The zoo's networks keep full resolution in their first stage, which is too slow for 224 pixels.
    return Defaults("imagenet", ("crop", "flip"), "torchvision.models:resnet18")


def _lazy(images: ImageArray) -> TypeGuard[Pixels]:
    from advbench.data.pixels import Pixels

    return isinstance(images, Pixels)
