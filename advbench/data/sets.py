"""The classes of loaded data sets, and the defaults that follow from the shape of their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: ``x`` float32 (N, C, H, W) in [0, 1], ``y`` int64 (N,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return int(self.y.shape[0])


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.train.x.shape[1:]
        return int(channels), int(height), int(width)

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
