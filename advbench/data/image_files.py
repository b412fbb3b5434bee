"""Images in files, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from advbench.data.decode import decode, in_colour
from advbench.data.pixels import ArraySource, ImageSource
from attacks_pool.errors import InputError

CHUNK = 1024
THREADS_FROM = 128 * 128
"""Decoders release the interpreter's lock, but for small images the switch costs more than decoding."""
LOOKED_AT = 20_000
"""Of more files than this, only evenly spaced ones are opened to find whether any is in colour."""
SAMPLE = 1000


def fitted(
    image: NDArray[np.uint8], size: int | None, channels: int | None, shorter: int
) -> NDArray[np.uint8]:
    """The image (C, H, W), resized to ``shorter`` on its shorter side, of which the middle square is cut.

    ``channels`` 3 repeats grey, 1 takes the brightness of colour (ITU-R 601); None leaves what is given.
    """
    if channels is not None and image.shape[0] != channels:
        if channels == 3:
            image = np.repeat(image, 3, axis=0)
        else:
            image = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"))[None]
    if size is None or image.shape[1:] == (size, size) == (shorter, shorter):
        return image
    height, width = image.shape[1:]
    scale = shorter / min(height, width)
    wide, high = max(shorter, round(width * scale)), max(shorter, round(height * scale))
    flat = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(flat))
    if picture.size != (wide, high):
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class FileSource:
    """Images of files, all of one size once they are fitted.

    Args:
        files: the files, in the order of the images.
        size: the side of the square cut from the middle of each image; None leaves images as they are, and
            they must then have one size.
        channels: 1 or 3; None takes 3 if any image is in colour.
        shorter: what the shorter side is resized to before cutting; by default ``size``.

    Raises:
        InputError: the first image cannot be read.
    """

    resident = False

    def __init__(
        self,
        files: Sequence[Path],
        *,
        size: int | None = None,
        channels: int | None = None,
        shorter: int | None = None,
    ) -> None:
        # Bytes in one array: a million Path objects would take half a gigabyte, in every worker.
        self._names = np.array([os.fsencode(file) for file in files])
        self.size, self.shorter = size, shorter or size or 0
        first = decode(files[0])
        height, width = (size, size) if size is not None else first.shape[1:]
        if channels is None:
            channels = 3 if first.shape[0] == 3 or any(map(in_colour, _some(files))) else 1
        self.shape: tuple[int, int, int] = (channels, height, width)

    def __len__(self) -> int:
        return len(self._names)

    def file(self, row: int) -> Path:
        """The file of an image."""
        return Path(os.fsdecode(bytes(self._names[row])))

    @property
    def listing(self) -> bytes:
        """Names and sizes of the files, for the fingerprint."""
        files = map(self.file, range(len(self)))
        names = (f"{file.parent.name}/{file.name} {file.stat().st_size}" for file in files)
        return "\n".join(names).encode(errors="surrogateescape")

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the images ``rows``: uint8 (B, C, H, W).

        Raises:
            InputError: a file is not an image, or is of another size.
        """
        files = [self.file(row) for row in rows]
        pixels = np.empty((len(files), *self.shape), dtype=np.uint8)
        for index, image in enumerate(self._decoded(files)):
            if image.shape[1:] != self.shape[1:]:
                raise InputError(
                    f"images differ in size: {self.file(0)} is {self.shape[2]}×{self.shape[1]} and "
                    f"{files[index]} is {image.shape[2]}×{image.shape[1]} (width×height); "
                    "--image-size brings all to one size"
                )
            pixels[index] = image
        return pixels

    def _decoded(self, files: list[Path]) -> Iterator[NDArray[np.uint8]]:
        if self.shape[1] * self.shape[2] < THREADS_FROM or len(files) < 2:
            yield from map(self._one, files)
            return
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for start in range(0, len(files), CHUNK):
                yield from threads.map(self._one, files[start : start + CHUNK])

    def _one(self, file: Path) -> NDArray[np.uint8]:
        return fitted(decode(file), self.size, self.shape[0], self.shorter)


class FittedSource:
    """Another source's images, brought to one size and number of channels when they are asked for."""

    resident = False

    def __init__(self, source: ImageSource, *, size: int | None, channels: int | None) -> None:
        self.source, self.size = source, size
        self.scale: int = getattr(source, "scale", 255)
        own, height, width = source.shape
        self.shape: tuple[int, int, int] = (channels or own, size or height, size or width)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images ``rows``, fitted: uint8 (B, C, H, W)."""
        images = self.source.read(rows)
        if images.dtype != np.uint8:
            raise InputError("images of floating-point numbers cannot be resized or recoloured: store bytes")
        channels, height, _ = self.shape
        size = None if self.size is None else height
        return np.stack([fitted(image, size, channels, height) for image in images.astype(np.uint8)])


def fit(source: ImageSource, *, size: int | None, channels: int | None) -> ImageSource:
    """The source with images brought to this size and number of channels; None changes nothing."""
    if isinstance(source, FileSource):
        return source
    wanted = (channels or source.shape[0], *((size, size) if size else source.shape[1:]))
    return source if wanted == source.shape else FittedSource(source, size=size, channels=channels)


def kept(source: ImageSource, limit: float) -> ImageSource:
    """The source itself, or all of its images in memory if they take at most ``limit`` bytes."""
    if source.resident or not len(source):
        return source
    dtype = np.dtype(getattr(source, "dtype", np.uint8))
    if len(source) * int(np.prod(source.shape)) * dtype.itemsize > limit:
        return source
    pixels = np.empty((len(source), *source.shape), dtype=dtype)
    for start in range(0, len(source), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(source)))
        pixels[rows] = source.read(rows)
    return ArraySource(pixels, scale=getattr(source, "scale", 255))


def _some(files: Sequence[Path]) -> Sequence[Path]:
    if len(files) <= LOOKED_AT:
        return files
    return [files[row] for row in np.linspace(0, len(files) - 1, SAMPLE).astype(int)]
