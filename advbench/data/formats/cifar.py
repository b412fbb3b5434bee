"""CIFAR-10 and CIFAR-100 from their "python version" batches, as torchvision lays them out."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from advbench.data.formats.locate import locate
from advbench.data.pixels import ArraySource
from advbench.data.splits import RawData, SplitPool
from attacks_pool.errors import InputError

LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}


def load(name: str, data_dir: Path | None) -> RawData:
    """Load ``cifar10`` or ``cifar100`` (the 100 fine classes) from ``data_dir``.

    The test set keeps its official order, which is random already; others use its first n as subsets.

    Raises:
        InputError: A file is missing or its MD5 is not the official one.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    official: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    meta = official.meta

    def read(filename: str, md5: str) -> dict[str, Any]:
        return _batch(name, locate(name, data_dir, f"{official.base_folder}/{filename}"), md5)

    train = [read(filename, md5) for filename, md5 in official.train_list]
    test = [read(filename, md5) for filename, md5 in official.test_list]
    classes = tuple(str(label) for label in read(meta["filename"], meta["md5"])[meta["key"]])
    pool = SplitPool(
        images=ArraySource(np.concatenate([batch["data"] for batch in train + test]).reshape(-1, 3, 32, 32)),
        labels=np.concatenate([np.asarray(batch[LABELS[name]], dtype=np.int64) for batch in train + test]),
        classes=classes,
    )
    count = sum(len(batch["data"]) for batch in train)
    return RawData(name, pool, np.arange(count), np.arange(count, len(pool.labels)))


def _batch(name: str, path: Path, md5: str) -> dict[str, Any]:
    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"data set {name!r}: {path} is not the official file: its MD5 is {found}, expected {md5}"
        )
    try:
        # The official batches were written by Python 2, whose byte strings read as latin1.
        batch = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise InputError(f"data set {name!r}: {path} is refused: {error}") from error
    return dict(batch)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, lists, strings, numbers and numpy arrays; refuses others, which could run code."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The few constructors that a pickled array needs."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return str.encode
        raise pickle.UnpicklingError(f"it contains {module}.{name}, and only arrays are read")


def _empty_array(*_: Any) -> Any:
    """A stand-in for numpy's ``_reconstruct``, whose module depends on the version; its state follows."""
    return np.ndarray((0,), dtype=np.uint8)
