"""What a user may choose about a data set: size and channels of images, and which part of it is used."""

from __future__ import annotations

import os
from dataclasses import dataclass

from attacks_pool.errors import InputError

SHARE_OF_MEMORY = 0.1


@dataclass(frozen=True)
class DataChoices:
    """Choices about a data set; None keeps what the files have.

    Attributes:
        image_size: the side in pixels of the square that every image is resized and cut to.
        channels: 1 or 3.
        classes: how many classes, from the first on, or the names of the classes to keep.
        train_points: how many training images to keep, each class in proportion.
        memory: bytes of images that are kept in memory; more are decoded when they are needed. By default a
            tenth of the machine's memory. It changes no number.

    Raises:
        InputError: a value is out of range.
    """

    image_size: int | None = None
    channels: int | None = None
    classes: int | tuple[str, ...] | None = None
    train_points: int | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("image_size", 4), ("train_points", 4), ("memory", 0)):
            given = getattr(self, name)
            if given is not None and given < least:
                raise InputError(f"{name}={given} is too small: it must be at least {least}")
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels={self.channels} is not possible: give 1 for grey or 3 for colour")
        if isinstance(self.classes, int) and self.classes < 2:
            raise InputError(f"classes={self.classes} is too small: a classifier needs two or more")

    @property
    def keep_all(self) -> bool:
        """Whether the data are used as they are."""
        return (self.image_size, self.channels, self.classes, self.train_points) == (None,) * 4

    @property
    def limit(self) -> float:
        """Bytes of images that are kept in memory."""
        return SHARE_OF_MEMORY * _memory() if self.memory is None else self.memory


def _memory() -> float:
    """The machine's memory in bytes."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return 8e9
