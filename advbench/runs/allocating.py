"""Bounds the memory for building a model from an untrusted record, which determines the model's sizes."""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacks_pool.errors import InputError

ELEMENT = 4
"""The bytes of a float32 weight."""
TIMES, SPARE = 20, 2**29
"""Building a model may take this multiple of the bytes of its weights, plus these bytes."""


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements of all tensors within the block, before they are allocated."""

    def __init__(self, most: int, what: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.what = most // ELEMENT, what

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, unless its sizes exceed the bound."""
        sizes = [arg for arg in args if isinstance(arg, list | tuple) and all(type(n) is int for n in arg)]
        self.left -= max((math.prod(size) for size in sizes if min(size, default=0) >= 0), default=0)
        if self.left < 0:
            raise InputError(self.what)
        return func(*args, **(kwargs or {}))


def bounded_by(weights: Path, what: str) -> AbstractContextManager[Any]:
    """Refuse to make tensors that are out of proportion to a file of weights.

    Args:
        weights: the file; a missing file counts as empty.
        what: the model's description in the error.

    Raises:
        InputError: the tensors exceed the bound.
    """
    size = weights.stat().st_size if weights.is_file() else 0
    fault = f"{what} is larger than its {size} bytes of weights can fill: it is not built"
    return _Bounded(TIMES * size + SPARE, fault)


def bounded_by_model(model: nn.Module, what: str) -> AbstractContextManager[Any]:
    """Refuse to make tensors that are out of proportion to an existing model.

    Args:
        model: the model.
        what: the description in the error of what is built from it.

    Raises:
        InputError: the tensors exceed the bound.
    """
    tensors = [*model.parameters(), *model.buffers()]
    most = TIMES * sum(tensor.numel() * tensor.element_size() for tensor in tensors) + SPARE
    return _Bounded(most, f"{what} takes more than {most // 10**6} MB of weights: it is not built")
