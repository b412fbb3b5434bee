"""The available data sets, listed without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from advbench.data.sets import defaults_for

ENTRY_POINTS = "advbench.datasets"
FOLDER = "folder:"


@dataclass(frozen=True)
class DataSetInfo:
    """Facts about a data set before it is loaded; None for facts that only its files show.

    ``image_shape`` is (channels, height, width); ``train``, ``validation`` and ``test`` count images.
    """

    name: str
    description: str
    image_shape: tuple[int, int, int] | None
    classes: int | None
    train: int | None
    validation: int | None
    test: int | None
    needs_data_dir: bool
    budget: str | None
    augmentation: tuple[str, ...] | None
    default_model: str | None


def _info(
    name: str, description: str, shape: tuple[int, int, int], classes: int, sizes: tuple[int, int, int]
) -> DataSetInfo:
    defaults = vars(defaults_for(shape))
    return DataSetInfo(name, description, shape, classes, *sizes, needs_data_dir=name != "digits", **defaults)


FROM_PATH = {
    "folder:": "your images, as PATH/train/CLASS/* and PATH/test/CLASS/*",
    "npz:": "your arrays x_train, y_train, x_test, y_test in one .npz file",
    "hf:": "a data set that Hugging Face's datasets saved to the folder PATH",
}
"""Prefixes of data sets that are named by their path."""


def _unlisted(name: str, description: str) -> DataSetInfo:
    return DataSetInfo(
        name,
        description,
        *(None,) * 5,
        needs_data_dir=False,
        budget=None,
        augmentation=None,
        default_model=None,
    )


_CORRUPTED = "15 corruptions at 5 severities (arXiv:1903.12261); to evaluate on"
_LISTED = (
    _info(
        "digits", "scikit-learn's handwritten digits; nothing to download", (1, 8, 8), 10, (1293, 144, 360)
    ),
    _info("mnist", "handwritten digits", (1, 28, 28), 10, (54000, 6000, 10000)),
    # Do not flip Fashion-MNIST: all of its shoes point the same way, in the test set too.
    _info("fashion-mnist", "pictures of clothes, in grey", (1, 28, 28), 10, (54000, 6000, 10000)),
    _info("cifar10", "small colour photographs", (3, 32, 32), 10, (45000, 5000, 10000)),
    _info("cifar100", "small colour photographs, the fine classes", (3, 32, 32), 100, (45000, 5000, 10000)),
    _info("svhn", "street-view house numbers", (3, 32, 32), 10, (65931, 7326, 26032)),
    _info("tiny-imagenet", "200 classes of ImageNet, small", (3, 64, 64), 200, (90000, 10000, 10000)),
    _info("imagenet", "ILSVRC 2012: train/ and val/", (3, 224, 224), 1000, (1153050, 128117, 50000)),
    _info("cifar10-c", f"CIFAR-10 with {_CORRUPTED}", (3, 32, 32), 10, (0, 0, 750000)),
    _info("cifar100-c", f"CIFAR-100 with {_CORRUPTED}", (3, 32, 32), 100, (0, 0, 750000)),
    _info("imagenet-c", f"ImageNet with {_CORRUPTED}", (3, 224, 224), 1000, (0, 0, 3750000)),
    *(_unlisted(f"{prefix}PATH", description) for prefix, description in FROM_PATH.items()),
)

DATASETS: dict[str, DataSetInfo] = {info.name: info for info in _LISTED}


def every_info() -> dict[str, DataSetInfo]:
    """The listed data sets, then those of installed packages."""
    added = {
        name: _unlisted(name, f"of the package {point.dist.name if point.dist else '?'}")
        for name, point in plugged().items()
    }
    return {**DATASETS, **added}


def plugged() -> dict[str, EntryPoint]:
    """Data sets of installed packages (entry points ``advbench.datasets``), by name; none replaces ours."""
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))
    return {point.name: point for point in found if point.name not in DATASETS}
