"""Data sets that are Python objects: of torch, of Hugging Face's ``datasets``, or arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from advbench.data.decode import as_bytes
from advbench.data.formats.arrays import Pair, as_labels, from_arrays
from advbench.data.pixels import Array
from advbench.data.splits import RawData, SplitPool
from attacks_pool.errors import InputError

IMAGE_KEYS = ("image", "img", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "y")
COMPARED = 16
"""Items whose labels are compared with the data set's list of labels."""
EXPECTED = (
    "a pair (train, test) of torch data sets or of pairs (images, labels); for evaluation alone, one of "
    "these "
    "or a DataLoader"
)


def from_object(given: Any, name: str) -> RawData:
    """The data set that a Python object describes.

    Args:
        given: a pair (train, test), or a mapping with these keys, of map-style data sets or of pairs
            (images, labels); or one of them, or a ``DataLoader``, to evaluate on. An item is a pair, or a
            mapping, of an image (PIL, bytes, or floats in [0, 1]) and a label.
        name: the name in records.

    Raises:
        InputError: the object, or an item of it, is none of these.
    """
    train, test = _parts(given)
    tensors = [_tensors(part) for part in (train, test) if part is not None]
    if all(pair is not None for pair in tensors):
        pairs: list[Any] = tensors
        return from_arrays(name, train=pairs[0] if train is not None else None, test=pairs[-1])
    sources = [
        _items(part, f"{name}, {kind}")
        for part, kind in ((train, "train"), (test, "test"))
        if part is not None
    ]
    labels = np.concatenate([labels_of(source) for source in sources])
    if len({source.shape for source in sources}) > 1:
        shapes = " and ".join(str(source.shape) for source in sources)
        raise InputError(f"{name}: training and test images differ in shape: {shapes}")
    classes = _classes(train if train is not None else test, int(labels.max()) + 1)
    if labels.max() >= len(classes):
        raise InputError(f"{name}: labels go up to {labels.max()}, but there are {len(classes)} classes")
    count = 0 if train is None else len(sources[0])
    pool = SplitPool(Chain(sources), labels, classes)
    return RawData(name, pool, np.arange(count), np.arange(count, len(labels)))


class ItemSource:
    """Images of a map-style data set.

    Args:
        items: gives an item for each index.
        where: what errors call it.

    Raises:
        InputError: an item has no image that can be used.
    """

    resident = False

    def __init__(self, items: Any, where: str) -> None:
        self.items, self.where = items, where
        first = self._image(0)
        channels, height, width = first.shape
        self.shape, self.dtype = (int(channels), int(height), int(width)), first.dtype

    def __len__(self) -> int:
        return len(self.items)

    def read(self, rows: NDArray[np.int64]) -> Array:
        """The images ``rows``: (B, C, H, W), bytes or float32 as the items have them."""
        pixels = np.empty((len(rows), *self.shape), dtype=self.dtype)
        for place, row in enumerate(rows):
            image = self._image(int(row))
            if image.shape != self.shape or image.dtype != self.dtype:
                raise InputError(
                    f"{self.where}: item {row} is an image of {image.dtype} and shape {image.shape}, the "
                    "first one of "
                    f"{np.dtype(self.dtype)} and shape {self.shape}"
                )
            pixels[place] = image
        return pixels

    def _image(self, row: int) -> Array:
        image, _ = pair_of(self.items[row], f"{self.where}: item {row}")
        return _as_array(image, f"{self.where}: item {row}")


class Chain:
    """Several sources of images of one shape, one after another."""

    resident = False

    def __init__(self, sources: list[ItemSource]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])
        self.shape, self.dtype = sources[0].shape, sources[0].dtype

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, rows: NDArray[np.int64]) -> Array:
        """The images ``rows``: (B, C, H, W)."""
        pixels = np.empty((len(rows), *self.shape), dtype=self.dtype)
        owner = np.searchsorted(self.ends, rows, side="right")
        for number, source in enumerate(self.sources):
            here = owner == number
            if here.any():
                start = 0 if number == 0 else self.ends[number - 1]
                pixels[here] = source.read(rows[here] - start)
        return pixels


def pair_of(item: Any, where: str) -> tuple[Any, Any]:
    """Image and label of an item: a pair, or a mapping as Hugging Face's data sets have.

    Raises:
        InputError: the item is neither.
    """
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if image is None or label is None:
            raise InputError(
                f"{where} has the keys {', '.join(map(str, item))}: expected {' or '.join(IMAGE_KEYS)}, and "
                f"{' or '.join(LABEL_KEYS)}"
            )
        return image, label
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise InputError(f"{where} is {type(item).__name__}: expected a pair (image, label), or a mapping")


def labels_of(source: ItemSource) -> NDArray[np.int64]:
    """All labels of a source: from a list of the data set, or else by reading every item."""
    items, where = source.items, source.where
    found = _listed(items)
    first = range(min(len(items), COMPARED))
    # A data set may change labels on the way, by a target_transform.
    if found is not None and any(
        _number(found[row]) != _number(pair_of(items[row], f"{where}: item {row}")[1]) for row in first
    ):
        found = None
    if found is None:
        found = [_number(pair_of(items[row], f"{where}: item {row}")[1]) for row in range(len(items))]
    return as_labels(where, np.asarray(found), len(items))


def _listed(items: Any) -> Any:
    if isinstance(items, Subset):
        inner = _listed(items.dataset)
        return None if inner is None else np.asarray(inner)[np.asarray(items.indices)]
    for name in ("targets", "labels"):
        listed = getattr(items, name, None)
        if listed is not None and not callable(listed) and len(listed) == len(items):
            return listed
    columns = getattr(items, "column_names", None)
    if isinstance(columns, list):
        return next((items[key] for key in LABEL_KEYS if key in columns), None)
    return None


def _number(label: Any) -> Any:
    return label.item() if isinstance(label, (Tensor, np.generic)) else label


def _as_array(image: Any, where: str) -> Array:
    """(C, H, W), bytes or float32 in [0, 1]."""
    if isinstance(image, Image.Image):
        pixels: NDArray[Any] = as_bytes(image)
    else:
        pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or (pixels.shape[0] not in (1, 3) and pixels.shape[2] not in (1, 3)):
        raise InputError(
            f"{where} is an image of shape {pixels.shape}; expected (H, W), (C, H, W) or (H, W, C) with "
            "1 or 3 channels"
        )
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.transpose(2, 0, 1)
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.integer) and pixels.min() >= 0 and pixels.max() <= 255:
        # Lists of numbers, as Hugging Face's data sets give arrays.
        return pixels.astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"{where} is an image of type {pixels.dtype}; expected bytes, or floats in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{where} has values from {low:g} to {high:g}; expected floats in [0, 1]: attacks work on "
            "images in "
            "[0, 1], so put any normalisation inside the model"
        )
    return pixels.astype(np.float32)


def _parts(given: Any) -> tuple[Any, Any]:
    """Training part, or None, and test part."""
    if isinstance(given, Mapping):
        if "test" not in given:
            raise InputError(
                f"a data set with the parts {', '.join(map(str, given))}: expected train and test"
            )
        return given.get("train"), given["test"]
    if isinstance(given, DataLoader):
        if isinstance(given.dataset, IterableDataset):
            raise InputError("a DataLoader of an IterableDataset has no indices: give a map-style data set")
        return None, _data_of(given)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        if _is_array(given[0]):
            return None, given
        return given[0], given[1]
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str):
        return None, given
    raise InputError(f"a data set cannot be a {type(given).__name__}: expected {EXPECTED}")


def _data_of(part: Any) -> Any:
    """The data set of a DataLoader; anything else as it is.

    Raises:
        InputError: its sampler leaves out points or repeats some, which the data set does not know.
    """
    if not isinstance(part, DataLoader):
        return part
    if isinstance(part.dataset, IterableDataset):
        return part.dataset
    batches = part.batch_sampler
    chosen: Any = part.sampler if batches is None else batches
    if type(chosen) is BatchSampler:
        chosen = chosen.sampler
    items: Any = part.dataset
    once = isinstance(chosen, RandomSampler) and not chosen.replacement and len(chosen) == len(items)
    if not (once or isinstance(chosen, (SequentialSampler, DistributedSampler))):
        raise InputError(
            f"a DataLoader with a {type(chosen).__name__} may leave out points or repeat some: give its data "
            "set, or torch.utils.data.Subset of it"
        )
    return part.dataset


def _is_array(given: Any) -> bool:
    return isinstance(given, (Tensor, np.ndarray))


def _tensors(part: Any) -> Pair | None:
    """Images and labels of a part that is in memory as arrays."""
    part = _data_of(part)
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        part = part.tensors
    if isinstance(part, (tuple, list)) and len(part) == 2 and _is_array(part[0]):
        images, labels = (one.detach().cpu().numpy() if isinstance(one, Tensor) else one for one in part)
        return images, labels
    return None


def _items(part: Any, where: str) -> ItemSource:
    part = _data_of(part)
    if isinstance(part, IterableDataset) or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise InputError(f"{where} is {type(part).__name__}: expected {EXPECTED}")
    if not len(part):
        raise InputError(f"{where} has no items")
    return ItemSource(part, where)


def _classes(part: Any, least: int) -> tuple[str, ...]:
    """Names of the classes, where the data set has them."""
    names = getattr(part, "classes", None)
    features = getattr(part, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
    if isinstance(names, (list, tuple)) and len(names) >= 2:
        return tuple(str(name) for name in names)
    return tuple(str(label) for label in range(max(least, 2)))
