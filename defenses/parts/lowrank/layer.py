"""What adapted layers share: a weight W, and a pair A_e, B_e of low rank for each task."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attacks_pool.errors import InputError
from defenses.parts.lowrank.routing import Routing

Made = TypeVar("Made")
Mix = int | Tensor | None
"""A task, fixed weights (E,) of all tasks, or None for the backbone alone."""


def check_batch(found: int, expected: int) -> None:
    """Check that the batch of ``expected`` samples reaches a layer as it was.

    Raises:
        InputError: the network changed its size, so that samples can no longer be matched to their tasks.
    """
    if found != expected:
        raise InputError(
            f"adapters need each sample in its place: a batch of {expected} has become one of {found} inside "
            "the network"
        )


class AdaptedLayer(nn.Module):
    """A layer with the weight W + s·B_e A_e for task e, where W has C_out rows.

    A_e has r rows of the shape of W's, and B_e is (C_out, r); r is ``rank``, limited to the rank that W can
    have. A_e is initialised like a layer and B_e with 0, so that a new adapter changes nothing.
    """

    weight: Tensor
    routing: Routing
    scale: float
    rank: int
    down: nn.ParameterList
    up: nn.ParameterList

    @property
    def weights(self) -> list[Tensor]:
        """The weights that adapters of this layer change."""
        return [self.weight]

    @property
    def sample_dimension(self) -> int:
        """The dimension of the output along which samples are counted."""
        return 0

    def _adapt(self, routing: Routing, *, rank: int, scale: float) -> None:
        """Prepare for adapters, once the layer has its weight."""
        self.routing, self.scale = routing, scale
        self.rank = min(rank, len(self.weight), self.weight[0].numel())
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        self._kept: dict[int | str | None, Any] | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, weights do not change or need gradients, so combined weights are computed only once."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def add_task(self, generator: torch.Generator) -> None:
        """Add one more adapter, on the device of the weights."""
        shape = (self.rank, *self.weight.shape[1:])
        bound = 1 / math.sqrt(self.weight[0].numel())
        draws = torch.rand(shape, generator=generator) * (2 * bound) - bound
        self.down.append(nn.Parameter(draws.to(self.weight)))
        self.up.append(nn.Parameter(self.weight.new_zeros(len(self.weight), self.rank)))

    def remove_tasks(self) -> None:
        """Remove all adapters."""
        self.down, self.up = nn.ParameterList(), nn.ParameterList()

    def merged_weight(self, mix: Mix) -> Tensor:
        """W + s·B_e A_e for one task, or W + s·Σ_e w_e·B_e A_e for fixed weights."""
        if mix is None:
            return self.weight
        if isinstance(mix, int):
            change: Tensor = self.up[mix] @ self.down[mix].flatten(1)
        else:
            gate = mix.to(self.weight).repeat_interleave(self.rank)
            change = (torch.cat(list(self.up), 1) * gate) @ torch.cat(list(self.down)).flatten(1)
        weight: Tensor = self.weight + self.scale * change.view_as(self.weight)
        return weight

    def _gate(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """s·w for each row of all A_e: (N, E) to (N, E·r)."""
        # Not repeat_interleave, because its gradient is slow.
        gate = (self.scale * weights).to(dtype)[:, :, None].expand(-1, -1, self.rank)
        return gate.reshape(len(weights), -1)

    def _once(self, what: int | str | None, make: Callable[[], Made]) -> Made:
        if self._kept is None:
            return make()
        if what not in self._kept:
            with torch.no_grad():
                self._kept[what] = make()
        made: Made = self._kept[what]
        return made

    def plain(self, mix: Mix) -> nn.Module:
        """An equivalent plain layer for a whole batch; its parameters are copies."""
        raise NotImplementedError
