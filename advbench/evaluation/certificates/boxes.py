"""Intervals of tensors, and the balls of images that a certificate speaks about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 2.0**-38
"""Relative widening of intervals that are computed in float64: 30,000 units in the last place."""
NORMS = ("linf", "l2", "l1")


class Box(NamedTuple):
    """Elementwise bounds of a tensor, both (N, ...), float64."""

    low: Tensor
    high: Tensor

    def widened(self) -> Box:
        """The box with room for the rounding of the operations that computed it."""
        room = ROUNDING * (self.low.abs() + self.high.abs()) + 1e-300
        return Box(self.low - room, self.high + room)

    def within(self, other: Box) -> Box:
        """The intersection with ``other``, which bounds the same tensor."""
        return Box(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))


@dataclass(frozen=True)
class Balls:
    """For each point of ``centre`` (N, C, H, W), float64, all images in [0, 1] at most ``eps`` away.

    ``norm`` measures the distance: linf, l2 or l1; ``eps`` is in the units of the images.
    """

    centre: Tensor
    norm: str
    eps: float

    @cached_property
    def box(self) -> Box:
        """The smallest box that contains the ball: every norm's ball lies in the linf ball of its radius."""
        x = self.centre
        return Box(torch.clamp(x - self.eps, min=0.0), torch.clamp(x + self.eps, max=1.0))

    def least(self, rows: Tensor, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The least value of linear functions on the ball.

        Args:
            rows: (R, ...) coefficients.
            pick: takes each row's part of a tensor (N, C, H, W).

        Returns:
            (R,) lower bounds of Σ rows · x, exact for linf; and (R,) the size of the terms that they sum,
            for an estimate of rounding.
        """
        terms = torch.where(rows > 0, rows * pick(self.box.low), rows * pick(self.box.high)).flatten(1)
        least, size = terms.sum(1), terms.abs().sum(1)
        if self.norm == "linf":
            return least, size
        # By Hölder's inequality; the box and the ball both contain all points, so the better bound holds.
        dual = rows.flatten(1).norm(dim=1) if self.norm == "l2" else rows.flatten(1).abs().amax(1)
        middle = (rows * pick(self.centre)).flatten(1)
        size = torch.maximum(size, middle.abs().sum(1) + self.eps * dual)
        return torch.maximum(least, middle.sum(1) - self.eps * dual), size

    def samples(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """The centre and ``count`` random points of the ball's border, cut with [0, 1]: (N, C, H, W) each."""
        found = [self.centre]
        for _ in range(count):
            # One direction for all points, so that a point's samples do not depend on its batch.
            draw = torch.randn(1, *self.centre.shape[1:], generator=generator, dtype=torch.float64)
            draw = draw.to(self.centre.device)
            if self.norm == "linf":
                step = draw.sign()
            else:
                flat = draw.flatten(1)
                length = flat.norm(dim=1) if self.norm == "l2" else flat.abs().sum(1)
                step = draw / length.view(-1, 1, 1, 1)
            found.append((self.centre + self.eps * step).clamp(0.0, 1.0))
        return found
