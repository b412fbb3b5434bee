"""The available data sets: listed without loading them, and loaded by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advbench.data.sets import DataSet, defaults_for
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
    needs_data_dir: bool = False
    budget: str | None = None
    augmentation: tuple[str, ...] | None = None
    default_model: str | None = None


def _info(
    name: str, description: str, shape: tuple[int, int, int], classes: int, sizes: tuple[int, int, int]
) -> DataSetInfo:
    defaults = vars(defaults_for(shape))
    return DataSetInfo(name, description, shape, classes, *sizes, needs_data_dir=name != "digits", **defaults)


_LISTED = (
    _info(
        "digits", "scikit-learn's handwritten digits; nothing to download", (1, 8, 8), 10, (1293, 144, 360)
    ),
    _info("mnist", "handwritten digits", (1, 28, 28), 10, (54000, 6000, 10000)),
    # Do not flip Fashion-MNIST: all of its shoes point the same way, in the test set too.
    _info("fashion-mnist", "pictures of clothes, in grey", (1, 28, 28), 10, (54000, 6000, 10000)),
    _info("cifar10", "small colour photographs", (3, 32, 32), 10, (45000, 5000, 10000)),
    _info("cifar100", "small colour photographs, the fine classes", (3, 32, 32), 100, (45000, 5000, 10000)),
    DataSetInfo(f"{FOLDER}PATH", "your images, as PATH/train/CLASS/* and PATH/test/CLASS/*", *(None,) * 5),
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
    # Import these here because they load numpy and torch, which listing must not do.
    from advbench.data import cifar, digits, idx

    defaults = defaults_for(info.image_shape)
    if name == "digits":
        return digits.load(defaults)
    load = idx.load if name in idx.FOLDERS else cifar.load
    return load(name, None if data_dir is None else Path(data_dir).expanduser(), defaults)
