"""Determines which adapters each sample of a batch passes through."""

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
    """The route of one batch: the backbone alone, one task's adapter, or a mixture for each sample.

    Attributes:
        task: the adapter for the whole batch; if it and ``weights`` are None, the backbone alone.
        weights: (N, E) mixing weights of the E adapters.
        counts: the number of samples of each task, if each sample has its own task.
        order: the permutation that sorts these samples by task; None if they are sorted already.
    """

    task: int | None = None
    weights: Tensor | None = None
    counts: tuple[int, ...] | None = None
    order: Tensor | None = None

    @property
    def chosen(self) -> bool:
        """Whether the route uses any adapter."""
        return self.task is not None or self.weights is not None

    @classmethod
    def by_task(cls, tasks: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Self:
        """Route each sample through its own task's adapter: ``tasks`` int64 (N,), below ``count``."""
        counts = tuple(torch.bincount(tasks, minlength=count).tolist())
        if len(tasks) and max(counts) == len(tasks):
            return cls(task=counts.index(len(tasks)))
        steps = tasks[1:] < tasks[:-1]
        order = torch.argsort(tasks, stable=True) if bool(steps.any()) else None
        return cls(weights=F.one_hot(tasks, count).to(dtype), counts=counts, order=order)


class Routing:
    """Holds the current route, which all adapted modules of one network read."""

    def __init__(self) -> None:
        self.route = Route()

    @contextmanager
    def along(self, route: Route) -> Iterator[None]:
        """Set ``route`` inside; restore the previous one afterwards."""
        before, self.route = self.route, route
        try:
            yield
        finally:
            self.route = before
