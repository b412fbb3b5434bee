"""CIFAR-10-C, CIFAR-100-C and ImageNet-C: corrupted test sets, to evaluate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advbench.data.choices import DataChoices
from advbench.data.formats.folder import images_in
from advbench.data.formats.imagenet import PART, listed_by_robustbench
from advbench.data.formats.locate import locate_folder
from advbench.data.image_files import FileSource
from advbench.data.pixels import ArraySource
from advbench.data.sets import Groups
from advbench.data.splits import TEST_SEED, RawData, SplitPool, permutation
from attacks_pool.errors import InputError, unknown

FOLDERS = {"cifar10-c": "CIFAR-10-C", "cifar100-c": "CIFAR-100-C", "imagenet-c": "ImageNet-C"}
CLASSES = {"cifar10-c": 10, "cifar100-c": 100}
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The fifteen corruptions of the benchmark (arXiv:1903.12261), in its order."""
EXTRA = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
"""Four more that its authors keep for validation; they are used only if they are named."""
SEVERITIES = 5
TITLE = "accuracy_by_severity_in_%"


def load(text: str, data_dir: Path | None, choices: DataChoices) -> RawData:
    """Load ``cifar10-c``, or a part of it such as ``cifar10-c:fog+snow,severity=5``.

    By default all fifteen corruptions at all five severities. The order is shuffled, so that any first
    n points hold every corruption and severity in proportion. Of ``imagenet-c:robustbench`` only the 5,000
    images that RobustBench evaluates on are used, of each corruption and severity.

    Raises:
        InputError: A file is missing or has another shape, or the text names no corruption or severity.
    """
    name, _, part = text.partition(":")
    words = [word for word in part.split(",") if word]
    corruptions, severities = _chosen(text, [word for word in words if word != PART])
    if PART in words and name != "imagenet-c":
        raise InputError(f"data set {text!r}: RobustBench uses all images of {name}: leave out {PART}")
    where = FOLDERS[name]
    if name == "imagenet-c":
        few = listed_by_robustbench(text) if PART in words else None
        pool, counts = _folders(name, data_dir, where, corruptions, severities, choices, few)
    else:
        pool = _arrays(name, data_dir, where, corruptions, severities)
        counts = (
            [len(pool.labels) // (len(corruptions) * len(severities))] * len(corruptions) * len(severities)
        )
    names = tuple((corruption, str(severity)) for corruption in corruptions for severity in severities)
    groups = Groups(TITLE, names, np.repeat(np.arange(len(names)), counts))
    return RawData(text, pool, np.arange(0), permutation(len(pool.labels), TEST_SEED), groups)


def _chosen(text: str, words: list[str]) -> tuple[list[str], list[int]]:
    corruptions, severities = list(CORRUPTIONS), list(range(1, SEVERITIES + 1))
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "severity":
            if not value.isdecimal() or not 1 <= int(value) <= SEVERITIES:
                raise InputError(
                    f"data set {text!r}: severity={value} must be a whole number from 1 to {SEVERITIES}"
                )
            severities = [int(value)]
        elif equals:
            raise unknown("option of a corrupted data set", key, ["severity"])
        else:
            corruptions = [one.strip().replace("-", "_") for one in word.split("+")]
            for one in corruptions:
                if one not in (*CORRUPTIONS, *EXTRA):
                    raise unknown("corruption", one, (*CORRUPTIONS, *EXTRA))
    return corruptions, severities


def _arrays(
    name: str, data_dir: Path | None, where: str, corruptions: list[str], severities: list[int]
) -> SplitPool:
    root = locate_folder(name, data_dir, (where,), "labels.npy")
    labels = _read(name, root / "labels.npy").astype(np.int64).ravel()
    each = len(labels) // SEVERITIES
    classes = CLASSES[name]
    if not each or len(labels) % SEVERITIES or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"data set {name!r}: {root / 'labels.npy'} holds {len(labels)} labels up to "
            f"{labels.max(initial=0)}; "
            f"expected the same number for each of {SEVERITIES} severities, from 0 to {classes - 1}"
        )
    parts = []
    for corruption in corruptions:
        path = root / f"{corruption}.npy"
        pixels = _read(name, path)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 32, 32, 3):
            raise InputError(
                f"data set {name!r}: {path} holds {pixels.dtype} of shape {pixels.shape}; expected bytes "
                "of shape "
                f"{(len(labels), 32, 32, 3)}"
            )
        parts += [pixels[each * (severity - 1) : each * severity] for severity in severities]
    wanted = np.concatenate([labels[each * (severity - 1) : each * severity] for severity in severities])
    names = tuple(str(label) for label in range(classes))
    return SplitPool(Joined(parts), np.tile(wanted, len(corruptions)), names)


def _read(name: str, path: Path) -> NDArray[np.uint8]:
    """The array of a file, mapped to memory."""
    try:
        found: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"data set {name!r}: cannot read {path}: {error}") from error
    return found


class Joined:
    """Several arrays of images (n, H, W, C) on disk, as one source.

    Args:
        parts: memory-mapped bytes, all of one shape.
    """

    resident = False

    def __init__(self, parts: list[NDArray[np.uint8]]) -> None:
        self.sources = [ArraySource(part, channels_last=True, resident=False) for part in parts]
        self.each = len(parts[0])
        self.shape = self.sources[0].shape

    def __len__(self) -> int:
        return self.each * len(self.sources)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images ``rows``: uint8 (B, C, H, W)."""
        pixels = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for number in np.unique(rows // self.each):
            here = rows // self.each == number
            pixels[here] = self.sources[number].read(rows[here] % self.each)
        return pixels


def _folders(
    name: str,
    data_dir: Path | None,
    where: str,
    corruptions: list[str],
    severities: list[int],
    choices: DataChoices,
    few: tuple[Path, set[str]] | None,
) -> tuple[SplitPool, list[int]]:
    """``CORRUPTION/SEVERITY/CLASS/*``, perhaps below a folder for a group of corruptions.

    ``few`` is a file that lists images, and their names; only these are used. The numbers of images by
    corruption and severity are returned too.
    """
    if data_dir is None:
        raise InputError(
            f"data set {name!r} is read from files: give --data-dir, a folder that holds {where}"
        )
    root = next((place for place in (data_dir / where, data_dir / name) if place.is_dir()), data_dir)
    files: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    counts: list[int] = []
    for corruption in corruptions:
        place = next((p for p in (root / corruption, *root.glob(f"*/{corruption}")) if p.is_dir()), None)
        if place is None:
            raise InputError(
                f"data set {name!r}: no folder {root / corruption}: expected {corruption}/1/CLASS/*"
            )
        for severity in severities:
            folder = place / str(severity)
            if not folder.is_dir():
                raise InputError(
                    f"data set {name!r}: no folder {folder}: expected {corruption}/{severity}/CLASS/*"
                )
            found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            classes = classes or found
            if found != classes or len(found) < 2:
                raise InputError(
                    f"data set {name!r}: {folder} has {len(found)} classes, others have {len(classes)}"
                )
            before = len(files)
            for label, wnid in enumerate(classes):
                some = [file for file in images_in(folder / wnid) if few is None or file.stem in few[1]]
                files += some
                labels += [label] * len(some)
            counts.append(len(files) - before)
            if few is not None and (missing := few[1] - {file.stem for file in files[before:]}):
                raise InputError(
                    f"data set {name!r}: {folder} lacks {len(missing)} images of {few[0]}, such as "
                    f"{min(missing)}"
                )
    source = FileSource(files, size=choices.image_size or 224, channels=choices.channels or 3)
    return SplitPool(source, np.array(labels, dtype=np.int64), tuple(classes)), counts
