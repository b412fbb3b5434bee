"""Which adapter each sample of a batch goes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Route:
    """How one batch goes: the backbone alone, one task's adapter, or a mixture for each sample.

    Attributes:
        task: the adapter of the whole batch; None with no ``weights``: the backbone alone.
        weights: (N, E) mixing weights of the E adapters.
        counts: where each sample has a task of its own, the number of samples of each task.
        order: the permutation that sorts those samples by task; None where they are sorted already.
    """

    task: int | None = None
    weights: Tensor | None = None
    counts: tuple[int, ...] | None = None
    order: Tensor | None = None

    @property
    def chosen(self) -> bool:
        """Whether it says more than: the backbone alone."""
        return self.task is not None or self.weights is not None

    @classmethod
    def by_task(cls, tasks: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Self:
        """Each sample through the adapter of its own task: ``tasks`` int64 (N,), below ``count``."""
        counts = tuple(torch.bincount(tasks, minlength=count).tolist())
        if len(tasks) and max(counts) == len(tasks):
            return cls(task=counts.index(len(tasks)))
        steps = tasks[1:] < tasks[:-1]
        order = torch.argsort(tasks, stable=True) if bool(steps.any()) else None
        return cls(weights=F.one_hot(tasks, count).to(dtype), counts=counts, order=order)


class Routing:
    """The present route, which every adapted module of one network looks at."""

    def __init__(self) -> None:
        self.route = Route()

    @contextmanager
    def along(self, route: Route) -> Iterator[None]:
        """``route`` inside, the one before afterwards."""
        before, self.route = self.route, route
        try:
            yield
        finally:
            self.route = before
