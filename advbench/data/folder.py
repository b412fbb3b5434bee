"""Images in class folders: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advbench.data.images import IMAGE_SUFFIXES, decode
from advbench.data.sets import DataSet, defaults_for
from advbench.data.splits import TEST_SEED, SplitPool, assemble, permutation
from attacks_pool.errors import InputError, unknown

CHUNK = 1024
THREADS_FROM = 128 * 128


def load(path: Path) -> DataSet:
    """Load the images below ``path``; the classes are the sorted names of the folders in ``path/train``.

    All images must have one size. If any image is in colour, grey images get three equal channels.

    Raises:
        InputError: A folder is missing or empty, classes do not fit, or an image is damaged or of odd size.
    """
    root = path.expanduser()
    if not root.is_dir():
        raise InputError(f"no folder {root}: expected one with train/CLASS/* and test/CLASS/*")
    try:
        return _load(root)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or root}: {error.strerror or error}") from error


def _load(root: Path) -> DataSet:
    train, test = (_class_folders(root, part) for part in ("train", "test"))
    classes = _matching(root, train, test)
    files = [[_images(folders[name]) for name in classes] for folders in (train, test)]
    per_class = [len(group) for part in files for group in part]
    pixels = _read([file for part in files for group in part for file in group])
    pool = SplitPool(pixels, np.repeat(np.tile(np.arange(len(classes)), 2), per_class), classes)
    count = sum(per_class[: len(classes)])
    # Files are sorted by class: without a shuffle, the first n test points would cover few classes.
    order = count + permutation(len(pixels) - count, TEST_SEED)
    defaults = defaults_for((pixels.shape[1], pixels.shape[2], pixels.shape[3]))
    return assemble(f"folder:{root.resolve().name}", pool, np.arange(count), order, defaults)


def _class_folders(root: Path, part: str) -> dict[str, Path]:
    folder = root / part
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: expected {part}/CLASS/* images in {root}")
    found = {
        entry.name: entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    }
    if not found:
        raise InputError(f"{folder} is empty: expected a folder of images for each class")
    return found


def _matching(root: Path, train: dict[str, Path], test: dict[str, Path]) -> tuple[str, ...]:
    classes = tuple(sorted(train))
    for name in classes:
        # Refuse control characters, and bytes that are not UTF-8, which Python reads as lone surrogates.
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise InputError(f"class folder {name!r} in {root / 'train'} has a name that cannot be printed")
    if len(classes) < 2:
        raise InputError(
            f"{root / 'train'} has only one class, {classes[0]!r}: a classifier needs two or more"
        )
    for name in sorted(test):
        if name not in train:
            raise unknown("class", name, classes, see=f"{test[name]} has no folder of that name in train")
    for name in classes:
        if name not in test:
            raise InputError(f"no folder {root / 'test' / name}: class {name!r} has no test images")
    return classes


def _images(folder: Path) -> list[Path]:
    files = sorted(
        (file for file in folder.iterdir() if _is_image(file)),
        key=lambda file: file.name,
    )
    if not files:
        raise InputError(f"class folder {folder} contains no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _read(files: list[Path]) -> NDArray[np.uint8]:
    """All images as one uint8 array (N, C, H, W), with C = 1 if every image is grey and C = 3 otherwise."""
    first = decode(files[0])
    height, width = first.shape[1:]
    pixels = np.empty((len(files), first.shape[0], height, width), dtype=np.uint8)
    for index, image in enumerate(_decoded(files, threaded=height * width >= THREADS_FROM)):
        if image.shape[1:] != (height, width):
            raise InputError(
                f"images differ in size: {files[0]} is {width}×{height} and "
                f"{files[index]} is {image.shape[2]}×{image.shape[1]} (width×height)"
            )
        if image.shape[0] > pixels.shape[1]:
            pixels = np.repeat(pixels, 3, axis=1)
        pixels[index] = image
    return pixels


def _decoded(files: list[Path], *, threaded: bool) -> Iterator[NDArray[np.uint8]]:
    """The images in order, decoded at most a chunk ahead."""
    # Decoders release the interpreter's lock, but for small images the switch costs more than decoding.
    if not threaded:
        yield from map(decode, files)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(files), CHUNK):
            yield from threads.map(decode, files[start : start + CHUNK])
