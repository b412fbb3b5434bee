"""Counts sample-passes: how many samples went forward and backward through a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Passes:
    """Samples that went through the model, forward and backward."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """Counts every call of ``model`` inside, and every time a gradient comes back through its output."""
    passes = Passes()

    def count(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        samples = output.shape[0]
        passes.forwards += samples
        if output.requires_grad:
            output.register_hook(lambda _gradient: _add_backward(passes, samples))  # type: ignore[no-untyped-call]

    handle = model.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def _add_backward(passes: Passes, samples: int) -> None:
    passes.backwards += samples
