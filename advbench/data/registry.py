"""The available data sets: listed without loading them, and loaded by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advbench.data.sets import DataSet, Defaults, defaults_for
from attacks_pool.errors import InputError, unknown

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
    defaults = defaults_for(shape)
    return DataSetInfo(
        name,
        description,
        shape,
        classes,
        *sizes,
        needs_data_dir=name != "digits",
        budget=defaults.budget,
        augmentation=defaults.augmentation,
        default_model=defaults.default_model,
    )


_LISTED = (
    _info(
        "digits", "scikit-learn's handwritten digits; nothing to download", (1, 8, 8), 10, (1293, 144, 360)
    ),
    _info("mnist", "handwritten digits", (1, 28, 28), 10, (54000, 6000, 10000)),
    # Do not flip Fashion-MNIST: all of its shoes point the same way, in the test set too.
    _info("fashion-mnist", "pictures of clothes, in grey", (1, 28, 28), 10, (54000, 6000, 10000)),
    _info("cifar10", "small colour photographs", (3, 32, 32), 10, (45000, 5000, 10000)),
    _info("cifar100", "small colour photographs, the fine classes", (3, 32, 32), 100, (45000, 5000, 10000)),
    DataSetInfo(
        f"{FOLDER}PATH",
        "your images, as PATH/train/CLASS/* and PATH/test/CLASS/*",
        *(None,) * 5,
        needs_data_dir=False,
        budget=None,
        augmentation=None,
        default_model=None,
    ),
)

DATASETS: dict[str, DataSetInfo] = {info.name: info for info in _LISTED}


def load_dataset(name: str, data_dir: str | Path | None = None) -> DataSet:
    """Load the data set ``name`` from files on this machine; nothing is ever downloaded.

    Args:
        name: One of ``DATASETS``, or ``folder:`` and the path of a folder.
        data_dir: A directory with torchvision's layout; not needed for ``digits`` and folders.

    Raises:
        InputError: The name is unknown, or files are missing or unusable.
    """
    if name.startswith(FOLDER):
        from advbench.data import folder

        if not name.removeprefix(FOLDER):
            raise InputError("data set 'folder:' names no folder: expected folder:PATH")
        return folder.load(Path(name.removeprefix(FOLDER)))
    info = DATASETS.get(name)
    if info is None or info.image_shape is None:
        raise unknown("data set", name, DATASETS)
    return _load_listed(
        name, Path(data_dir).expanduser() if data_dir is not None else None, defaults_for(info.image_shape)
    )


def _load_listed(name: str, data_dir: Path | None, defaults: Defaults) -> DataSet:
    # Import these here because they load numpy and torch, which listing must not do.
    from advbench.data import cifar, digits, idx

    if name == "digits":
        return digits.load(defaults)
    if name in idx.FOLDERS:
        return idx.load(name, data_dir, defaults)
    return cifar.load(name, data_dir, defaults)
