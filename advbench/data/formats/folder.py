"""Images in class folders: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from advbench.data.choices import DataChoices
from advbench.data.decode import IMAGE_SUFFIXES
from advbench.data.image_files import FileSource
from advbench.data.splits import TEST_SEED, RawData, SplitPool, permutation
from attacks_pool.errors import InputError, unknown


def load(path: Path, choices: DataChoices) -> RawData:
    """Find the images below ``path``; the classes are the sorted names of the folders in ``path/train``.

    All images must have one size, unless the choices name one. If any image is in colour, grey images get
    three equal channels. ``val`` takes the place of a missing ``test``. Without ``train``, the data set
    can be evaluated on, but not trained on.

    Raises:
        InputError: A folder is missing or empty, classes do not fit, or an image is damaged or of odd size.
    """
    root = path.expanduser()
    if not root.is_dir():
        raise InputError(f"no folder {root}: expected one with train/CLASS/* and test/CLASS/*")
    try:
        return _load(root, choices)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or root}: {error.strerror or error}") from error


def _load(root: Path, choices: DataChoices) -> RawData:
    held_out = "val" if (root / "val").is_dir() and not (root / "test").is_dir() else "test"
    test = _class_folders(root, held_out)
    train = _class_folders(root, "train") if (root / "train").is_dir() else {}
    classes = _matching(root, train, test)
    return of_classes(f"folder:{root.resolve().name}", classes, train, test, choices)


def of_classes(
    name: str,
    classes: tuple[str, ...],
    train: dict[str, Path],
    test: dict[str, Path],
    choices: DataChoices,
    *,
    shorter: int | None = None,
) -> RawData:
    """The data set ``name`` from a folder of images for each of ``classes``, in either part."""
    groups = [
        (label, images_in(folders[folder]))
        for folders in (train, test)
        for label, folder in enumerate(classes)
        if folders
    ]
    labels = np.repeat([label for label, _ in groups], [len(files) for _, files in groups])
    count = sum(len(files) for _, files in groups[: len(classes) if train else 0])
    source = FileSource(
        [file for _, files in groups for file in files],
        size=choices.image_size,
        channels=choices.channels,
        shorter=shorter,
    )
    pool = SplitPool(source, labels.astype(np.int64), classes)
    # Files are sorted by class: without a shuffle, the first n test points would cover few classes.
    return RawData(name, pool, np.arange(count), count + permutation(len(labels) - count, TEST_SEED))


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
    part, folders = ("train", train) if train else ("test", test)
    classes = tuple(sorted(folders))
    for name in classes:
        # Refuse control characters, and bytes that are not UTF-8, which Python reads as lone surrogates.
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise InputError(f"class folder {name!r} in {root / part} has a name that cannot be printed")
    if len(classes) < 2:
        raise InputError(f"{root / part} has only one class, {classes[0]!r}: a classifier needs two or more")
    for name in sorted(test):
        if name not in folders:
            raise unknown("class", name, classes, see=f"{test[name]} has no folder of that name in train")
    for name in classes:
        if name not in test:
            raise InputError(f"no folder {root / 'test' / name}: class {name!r} has no test images")
    return classes


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name.

    Raises:
        InputError: There are none, or one is a link to a file that does not exist.
    """
    files = sorted(
        (file for file in folder.iterdir() if _is_image(file)),
        key=lambda file: file.name,
    )
    if not files:
        raise InputError(f"class folder {folder} contains no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _is_image(file: Path) -> bool:
    if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
        return False
    if file.is_symlink() and not file.exists():
        # Data sets are often folders of links; left out, lost images would change the data in silence.
        raise InputError(f"{file} is a link to a file that does not exist: {file.readlink()}")
    return file.is_file()
