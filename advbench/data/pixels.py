"""Images that are decoded, or turned into floats, only when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.uint8] | NDArray[np.float32]
Rows = slice | Tensor | NDArray[np.int64] | Sequence[int]
CHUNK = 256


class ImageSource(Protocol):
    """A store of N images of one size.

    ``shape`` is (C, H, W). ``resident`` says whether all images are in memory already.
    """

    shape: tuple[int, int, int]
    resident: bool

    def __len__(self) -> int:
        """N."""
        ...

    def read(self, rows: NDArray[np.int64]) -> Array:
        """The images ``rows`` as (B, C, H, W): bytes from 0 to 255, or float32 in [0, 1]."""
        ...


class ImageArray(Protocol):
    """What a split needs of its images: a tensor has it, and so has :class:`Pixels`."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the tensors that indexing returns."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, rows: Rows, /) -> Tensor:
        """float32 images."""
        ...


class ArraySource:
    """Images of an array in memory, or of a memory-mapped file.

    Args:
        pixels: (N, C, H, W), uint8 in [0, ``scale``] or float32 in [0, 1]; (N, H, W, C) if ``channels_last``.
        scale: the value that means white.
        resident: False for a memory-mapped file.
    """

    def __init__(
        self, pixels: Array, *, scale: int = 255, channels_last: bool = False, resident: bool = True
    ) -> None:
        self.pixels: Array = pixels.transpose(0, 3, 1, 2) if channels_last else pixels
        self.scale, self.resident = scale, resident
        channels, height, width = self.pixels.shape[1:]
        self.shape = (int(channels), int(height), int(width))

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: NDArray[np.int64]) -> Array:
        """The images ``rows``, copied."""
        pixels: Any = self.pixels
        found: Array = np.ascontiguousarray(pixels[rows])
        return found


class Pixels:
    """Images of a source, as an array of float32 in [0, 1] that is computed where it is indexed.

    Bytes become value / scale, with the same rounding wherever they are kept.

    Args:
        source: the store of images.
        rows: (N,) the images of ``source`` in the order of this array; by default all.
        device: the device of the tensors that indexing returns.
    """

    def __init__(
        self,
        source: ImageSource,
        rows: NDArray[np.int64] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = source
        self.rows = np.arange(len(source)) if rows is None else rows
        self.device = torch.device(device)
        self.scale: int = getattr(source, "scale", 255)
        self._there: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.rows), *self.source.shape))

    @property
    def resident(self) -> bool:
        """Whether indexing reads no file."""
        return self._there is not None or self.source.resident

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Rows) -> Tensor:
        if self._there is not None:
            return self._floats(self._there[rows if isinstance(rows, slice) else torch.as_tensor(rows)])
        if isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        return self.converted(torch.from_numpy(self.read(rows)))

    def read(self, rows: Rows) -> Array:
        """The stored values of the images ``rows`` of this array, without conversion: (B, C, H, W)."""
        return self.source.read(self.rows[rows])

    def converted(self, stored: Tensor) -> Tensor:
        """float32 in [0, 1] on ``device`` from stored values (B, C, H, W)."""
        return self._floats(stored.to(self.device, non_blocking=True))

    def head(self, count: int) -> Pixels:
        """The first ``count`` images, which are not read."""
        few = Pixels(self.source, self.rows[:count], device=self.device)
        few._there = None if self._there is None else self._there[:count]
        return few

    def to(self, device: torch.device | str) -> Pixels:
        """These images for work on ``device``; resident ones are copied there as they are stored."""
        place = torch.device(device)
        if place == self.device:
            return self
        moved = Pixels(self.source, self.rows, device=place)
        if self.source.resident and place.type != "cpu":
            moved._there = torch.from_numpy(self.source.read(self.rows)).to(place)
        return moved

    def _floats(self, stored: Tensor) -> Tensor:
        if stored.dtype == torch.float32:
            return stored
        # A GPU multiplies by the reciprocal of a plain number, which rounds differently; not of a tensor.
        return stored.to(torch.float32).div_(torch.tensor(float(self.scale), device=stored.device))
