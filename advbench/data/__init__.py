"""Data sets as tensors: the available sets, their splits, and the loader that batches them.

Importing this package loads no torch; loading a data set or a ``TensorLoader`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advbench.data.choices import DataChoices
from advbench.data.loading import imports_data, load_dataset
from advbench.data.registry import DATASETS, DataSetInfo
from advbench.data.sets import DataSet, Split

if TYPE_CHECKING:
    from advbench.data.loader import TensorLoader

__all__ = [
    "DATASETS",
    "DataChoices",
    "DataSet",
    "DataSetInfo",
    "Split",
    "TensorLoader",
    "imports_data",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name == "TensorLoader":
        from advbench.data.loader import TensorLoader

        return TensorLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
