"""MNIST and Fashion-MNIST from their IDX files, plain or gzipped, as torchvision lays them out."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advbench.data.formats.locate import locate
from advbench.data.pixels import ArraySource
from advbench.data.splits import TEST_SEED, RawData, SplitPool, permutation
from attacks_pool.errors import InputError

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
CLASSES = {
    "mnist": tuple(str(digit) for digit in range(10)),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}


def load(name: str, data_dir: Path | None) -> RawData:
    """Load ``mnist`` or ``fashion-mnist`` from ``data_dir/MNIST/raw`` or ``data_dir/FashionMNIST/raw``.

    Raises:
        InputError: A file is missing, damaged, or does not fit the others.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        x, y = (
            _array(name, data_dir, f"{FOLDERS[name]}/raw/{part}-{kind}-ubyte", dimensions)
            for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1))
        )
        if len(x) != len(y) or x.shape[1:] != (28, 28) or int(y.max(initial=0)) > 9:
            raise InputError(
                f"data set {name!r}: {part} holds {len(x)} images of {x.shape[2]}×{x.shape[1]} pixels and "
                f"{len(y)} labels up to {y.max(initial=0)}; expected 28×28 pixels, a label for each, 0 to 9"
            )
        if not len(x):
            raise InputError(f"data set {name!r}: {part} contains no images")
        images.append(x)
        labels.append(y)
    source = ArraySource(np.concatenate(images)[:, None])
    pool = SplitPool(source, np.concatenate(labels).astype(np.int64), CLASSES[name])
    count = len(images[0])
    # Plain classifiers err twice as often on the first half of MNIST's test file as on the second (measured),
    # so the first n points in the official order are not a fair sample.
    test = count + permutation(len(images[1]), TEST_SEED)
    return RawData(name, pool, np.arange(count), test)


def _array(name: str, data_dir: Path | None, relative: str, dimensions: int) -> NDArray[np.uint8]:
    """Read the unsigned bytes of one IDX file: a magic number, big-endian sizes, then the values."""
    path = locate(name, data_dir, relative, or_suffix=".gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data set {name!r}: cannot read {path}: {error}") from error
    start = 4 * (dimensions + 1)
    header = np.frombuffer(data[: min(start, len(data) // 4 * 4)], dtype=">u4").tolist()
    # 8 is the format's code for unsigned bytes.
    if len(header) <= dimensions or header[0] != (8 << 8) + dimensions:
        raise InputError(f"data set {name!r}: {path} is not an IDX file of {dimensions} dimensions of bytes")
    shape = tuple(header[1:])
    values = np.frombuffer(data, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise InputError(
            f"data set {name!r}: {path} is damaged: "
            f"its header says {'×'.join(map(str, shape))} values, but it has {values.size}"
        )
    return values.reshape(shape)
