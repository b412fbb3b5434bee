"""ImageNet (ILSVRC 2012) from ``train/`` and ``val/``, with or without class folders in ``val/``."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from advbench.data.choices import DataChoices
from advbench.data.formats.folder import images_in
from advbench.data.formats.locate import locate_folder
from advbench.data.image_files import FileSource
from advbench.data.splits import TEST_SEED, RawData, SplitPool, permutation
from attacks_pool.errors import InputError, unknown

FOLDERS = ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
SIZE, SHORTER = 224, 256
PART, LIST = "robustbench", Path("helper_files", "imagenet_test_image_ids.txt")
SOLUTION, TRUTH, META = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def load(name: str, data_dir: Path | None, choices: DataChoices) -> RawData:
    """Find the images; ``val`` is the test set, and labels follow the sorted WordNet ids.

    Of ``imagenet:robustbench`` the test set are the 5,000 images of ``val`` that RobustBench evaluates on.

    Images are resized to 256 pixels on their shorter side and cut to 224×224, or in proportion for another
    ``image_size``. A flat ``val/`` needs its labels beside it: ``LOC_val_solution.csv``; or the development
    kit with ``ILSVRC2012_validation_ground_truth.txt`` and ``meta.mat``; or ``val.txt``, which gives a number
    for each file.

    Raises:
        InputError: Files are missing, or labels do not fit them.
    """
    _, colon, part = name.partition(":")
    if colon and part != PART:
        raise unknown("part of imagenet", part, [PART])
    root = locate_folder(name, data_dir, FOLDERS, "val")
    try:
        train = _by_class(root / "train") if (root / "train").is_dir() else {}
        val = _by_class(root / "val")
        test = (
            _labelled(name, root, sorted(train))
            if not val
            else [(file, key) for key in val for file in val[key]]
        )
    except OSError as error:
        raise InputError(f"cannot read {error.filename or root}: {error.strerror or error}") from error
    classes = tuple(sorted(train or {key for _, key in test}))
    strange = sorted({key for _, key in test} - set(classes))
    if strange:
        raise InputError(
            f"data set {name!r}: val has images of class {strange[0]!r}, which train does not have"
        )
    if len(classes) < 2:
        raise InputError(f"data set {name!r}: {root} has {len(classes)} class, expected two or more")
    if colon:
        test = _chosen(name, test)
    every = [*((file, key) for key in sorted(train) for file in train[key]), *sorted(test)]
    number = {key: label for label, key in enumerate(classes)}
    size = choices.image_size or SIZE
    images = FileSource(
        [file for file, _ in every],
        size=size,
        channels=choices.channels or 3,
        shorter=round(size * SHORTER / SIZE),
    )
    pool = SplitPool(images, np.array([number[key] for _, key in every], dtype=np.int64), classes)
    count = len(every) - len(test)
    return RawData(name, pool, np.arange(count), count + permutation(len(test), TEST_SEED))


def listed_by_robustbench(name: str) -> tuple[Path, set[str]]:
    """The list of images in RobustBench's package: its file, and the names without suffix.

    Raises:
        InputError: the package is not installed; the message names the data set ``name``.
    """
    # Found without an import, which would load the whole package.
    package = importlib.util.find_spec("robustbench")
    places = [] if package is None else package.submodule_search_locations or []
    file = next((path for place in places if (path := Path(place) / LIST).is_file()), None)
    if file is None:
        raise InputError(
            f"data set {name!r} needs the list of images that comes with RobustBench: "
            "pip install 'advbench[robustbench]'"
        )
    return file, {Path(line).stem for line in file.read_text().split()}


def _chosen(name: str, test: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Those of the test images that RobustBench's package lists."""
    file, wanted = listed_by_robustbench(name)
    missing = sorted(wanted - {image.stem for image, _ in test})
    if missing:
        raise InputError(
            f"data set {name!r}: val lacks {len(missing)} images of {file}, such as {missing[0]}"
        )
    return [(image, key) for image, key in test if image.stem in wanted]


def _by_class(folder: Path) -> dict[str, list[Path]]:
    places = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {place.name: images_in(place) for place in places}


def _labelled(name: str, root: Path, wnids: list[str]) -> list[tuple[Path, str]]:
    """The files of a flat ``val`` with their WordNet ids."""
    files = images_in(root / "val")
    solution, kit, numbers = (_beside(root, word) for word in (SOLUTION, TRUTH, "val.txt"))
    if solution is not None:
        with solution.open(newline="") as stream:
            classes = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(stream)}
        source = solution
    elif kit is not None and (meta := _beside(root, META)) is not None:
        classes, source = _from_kit(files, kit, meta), kit
    elif numbers is not None and wnids:
        rows = [line.split() for line in numbers.read_text().splitlines() if line.strip()]
        classes = {Path(file).stem: wnids[int(label)] for file, label in rows if int(label) < len(wnids)}
        source = numbers
    else:
        raise InputError(
            f"data set {name!r}: {root / 'val'} has no class folders, and there are no labels beside it: "
            f"expected val/CLASS/*, or {SOLUTION}, or {TRUTH} with {META}, or val.txt (with train/CLASS/*)"
        )
    for file in files:
        if file.stem not in classes:
            raise InputError(f"data set {name!r}: {source} has no label for {file.name}")
    return [(file, classes[file.stem]) for file in files]


def _from_kit(files: list[Path], truth: Path, meta: Path) -> dict[str, str]:
    """The development kit numbers classes from 1 in an order of its own, which ``meta.mat`` lists."""
    from scipy.io import loadmat

    synsets: Any = loadmat(meta, squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    labels = truth.read_text().split()
    if len(labels) != len(files):
        raise InputError(f"{truth} has {len(labels)} labels for {len(files)} images in val")
    return {file.stem: wnids[int(label)] for file, label in zip(files, labels, strict=True)}


def _beside(root: Path, filename: str) -> Path | None:
    """The file next to the images, in a parent of theirs, or in a development kit."""
    kits = [*root.glob("ILSVRC2012_devkit*/data"), *root.parent.glob("ILSVRC2012_devkit*/data")]
    for folder in (root, root / "val", *kits, *list(root.parents)[:3]):
        if (folder / filename).is_file():
            return folder / filename
    return None
