"""Tiny ImageNet in its own layout: 200 classes of 64×64 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advbench.data.choices import DataChoices
from advbench.data.formats.folder import images_in
from advbench.data.formats.locate import locate_folder
from advbench.data.image_files import FileSource
from advbench.data.splits import TEST_SEED, RawData, SplitPool, permutation
from attacks_pool.errors import InputError, unknown

FOLDERS = ("tiny-imagenet-200", "tiny-imagenet")


def load(name: str, data_dir: Path | None, choices: DataChoices) -> RawData:
    """Find ``train/WNID/images/*`` and ``val/images/*`` with ``val_annotations.txt``; val is the test set.

    Labels are the places in ``wnids.txt`` in sorted order, as for ImageNet. Names of classes are WordNet ids.

    Raises:
        InputError: A file is missing, or annotations do not fit the images.
    """
    root = locate_folder(name, data_dir, FOLDERS, "wnids.txt")
    try:
        classes = tuple(sorted((root / "wnids.txt").read_text().split()))
        train = [
            (file, label)
            for label, wnid in enumerate(classes)
            if (root / "train").is_dir()
            for file in images_in(root / "train" / wnid / "images")
        ]
        test = _annotated(name, root / "val", classes)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or root}: {error.strerror or error}") from error
    if len(classes) < 2:
        raise InputError(
            f"data set {name!r}: {root / 'wnids.txt'} lists {len(classes)} classes, expected two or more"
        )
    every = [*train, *test]
    images = FileSource(
        [file for file, _ in every], size=choices.image_size or 64, channels=choices.channels or 3
    )
    pool = SplitPool(images, np.array([label for _, label in every], dtype=np.int64), classes)
    order = len(train) + permutation(len(test), TEST_SEED)
    return RawData(name, pool, np.arange(len(train)), order)


def _annotated(name: str, folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The images of ``val`` with their labels, sorted by name."""
    table = folder / "val_annotations.txt"
    found = []
    for number, line in enumerate(table.read_text().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise InputError(f"data set {name!r}: {table}, line {number}: expected a file name and a class")
        if words[1] not in classes:
            raise unknown("class", words[1], classes, see=f"{table}, line {number}")
        file = folder / "images" / words[0]
        if not file.is_file():
            raise InputError(f"data set {name!r}: {table}, line {number}, names {file}, which does not exist")
        found.append((file, classes.index(words[1])))
    if not found:
        raise InputError(f"data set {name!r}: {table} lists no images")
    return sorted(found)
