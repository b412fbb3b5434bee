"""Activations: linear bounds of their outputs on intervals of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.evaluation.certificates.affine_steps import Shape, Step
from advbench.evaluation.certificates.boxes import ROUNDING, Box

Pick = Callable[[Tensor], Tensor]
GRID = 64
"""Number of equal parts into which an interval is divided to bound a smooth activation on it."""


class Relaxation:
    """Linear lower and upper bounds of a step's output, for each point of a batch."""

    def backward(self, rows: Tensor, pick: Pick) -> tuple[Tensor, Tensor]:
        """Replace the output of the step by its bounds in linear functions of that output.

        Args:
            rows: (R, *shape) coefficients of the output.
            pick: takes each row's part of a tensor (N, ...).

        Returns:
            (R, *input shape) coefficients of the input, and (R, terms) constants, such that
            Σ coefficients · input + Σ constants ≤ Σ rows · output.
        """
        raise NotImplementedError


class Nonlinear(Step):
    """A step that is not affine; it has one input."""

    def relaxed(self, box: Box) -> Relaxation:
        """Linear bounds that hold for every input in ``box`` (N, ...)."""
        raise NotImplementedError

    def loose(self, box: Box) -> Tensor:
        """Where tighter bounds of the input would make the linear bounds tighter; boolean (N, ...)."""
        return box.high > box.low


@dataclass(frozen=True)
class Lines(Relaxation):
    """Elementwise bounds low_slope · x + low ≤ output ≤ high_slope · x + high, each (N, ...)."""

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor

    def backward(self, rows: Tensor, pick: Pick) -> tuple[Tensor, Tensor]:
        """Positive coefficients take the lower line, negative ones the upper."""
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        back = positive * pick(self.low_slope) + negative * pick(self.high_slope)
        constants = positive * pick(self.low) + negative * pick(self.high)
        return back, constants.flatten(1)


@dataclass(frozen=True)
class Chords(Relaxation):
    """The bounds of max(x, a·x): lower · x ≤ output ≤ upper · x + height, each (N, ...).

    ``lower`` may also have one slope for each row, (R, ...), as optimised slopes do.
    """

    lower: Tensor
    upper: Tensor
    height: Tensor
    per_row: bool = False

    def backward(self, rows: Tensor, pick: Pick) -> tuple[Tensor, Tensor]:
        """Positive coefficients take the lower line, negative ones the chord."""
        negative = rows.clamp(max=0)
        lower = self.lower if self.per_row else pick(self.lower)
        back = rows.clamp(min=0) * lower + negative * pick(self.upper)
        return back, (negative * pick(self.height)).flatten(1)


class Rectifier(Nonlinear):
    """max(x, a·x) with a ≤ 1, elementwise: ReLU (a = 0), leaky and parametric ReLU.

    Args:
        inputs: the index of its input.
        shapes: the shape of its input.
        leak: a, broadcast to the input.
    """

    def __init__(self, inputs: tuple[int, ...], shapes: tuple[Shape, ...], leak: Tensor) -> None:
        super().__init__(inputs, shapes)
        self.leak = leak

    def value(self, *given: Tensor) -> Tensor:
        """max(x, a·x)."""
        return torch.maximum(given[0], self.leak * given[0])

    def image(self, *boxes: Box) -> Box:
        """The function is convex with its only kink at 0, so that extremes are at the ends and at 0."""
        low, high = self.value(boxes[0].low), self.value(boxes[0].high)
        inside = (boxes[0].low < 0) & (boxes[0].high > 0)
        least = torch.minimum(low, high)
        return Box(torch.where(inside, least.clamp(max=0), least), torch.maximum(low, high)).widened()

    def loose(self, box: Box) -> Tensor:
        """Where the kink is inside the interval; elsewhere the bounds are exact."""
        return (box.low < 0) & (box.high > 0)

    def relaxed(self, box: Box) -> Chords:
        """The chord above; below, the slope 1 or a, whichever leaves less area (arXiv:1811.00866)."""
        return self.with_slopes(box, torch.where(box.high > -box.low, 1.0, self.leak))

    def parallel(self, box: Box) -> Chords:
        """The chord above, and its parallel through 0 below (arXiv:1711.00851)."""
        kink = self.loose(box)
        width = torch.where(kink, box.high - box.low, 1.0)
        slope = (box.high - self.leak * box.low) / width
        # Rounding must not take the slope out of the valid range.
        return self.with_slopes(box, slope.clamp(max=1.0).maximum(self.leak.expand_as(slope)))

    def with_slopes(self, box: Box, slopes: Tensor, owner: Tensor | None = None) -> Chords:
        """The bounds with these lower slopes, which must be from a to 1, where the kink is inside.

        Args:
            box: (N, ...) the interval of the input.
            slopes: (N, ...), or (R, ...) if ``owner`` (R,) has the point of each row.
            owner: the point of each row.
        """
        kink, right = self.loose(box), box.low >= 0
        leak = self.leak.expand_as(box.low)
        width = torch.where(kink, box.high - box.low, 1.0)
        slope = (box.high - leak * box.low) / width
        upper = torch.where(kink, slope, torch.where(right, 1.0, leak))
        # The chord passes through (low, a·low) and (high, high); rounding moves it outwards.
        room = ROUNDING * (box.high.abs() + box.low.abs())
        height = torch.where(kink, (leak - slope) * box.low + room, 0.0)
        if owner is not None:
            kink, right, leak = kink[owner], right[owner], leak[owner]
        lower = torch.where(kink, slopes, torch.where(right, 1.0, leak))
        return Chords(lower, upper, height, per_row=owner is not None)


class Curve(Nonlinear):
    """A scalar function, elementwise, that is smooth between a few points.

    An interval is divided into GRID parts of width h. Inside a part, f(x) − s·x differs from the line through
    its values at the ends by at most curvature · h² / 8, which bounds it from both sides for any slope s.

    Args:
        inputs: the index of its input.
        shapes: the shape of its input.
        function: the function.
        curvature: a bound of |f''| wherever f is smooth.
        kinks: the points where f' jumps.
        monotone: whether f never decreases.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        shapes: tuple[Shape, ...],
        function: Callable[[Tensor], Tensor],
        curvature: float,
        kinks: Sequence[float] = (),
        *,
        monotone: bool = False,
    ) -> None:
        super().__init__(inputs, shapes)
        self.function, self.curvature, self.kinks, self.monotone = function, curvature, kinks, monotone

    def value(self, *given: Tensor) -> Tensor:
        """The function's value."""
        return self.function(given[0])

    def image(self, *boxes: Box) -> Box:
        """Exact for a monotone function; otherwise the bounds of slope 0."""
        box = boxes[0]
        if self.monotone:
            return Box(self.function(box.low), self.function(box.high)).widened()
        points, values, room = self._sampled(box)
        low, high = _offsets(points, values, torch.zeros_like(box.low), room)
        return Box(low, high)

    def relaxed(self, box: Box) -> Lines:
        """Of the chord and the tangents at the ends and the middle, the lines that leave the least area."""
        points, values, room = self._sampled(box)
        middle = (box.low + box.high) / 2
        low_slope = low = high_slope = high = torch.zeros(0)
        for number, slope in enumerate(self._slopes(box)):
            below, above = _offsets(points, values, slope, room)
            if number == 0:
                low_slope, low, high_slope, high = slope, below, slope, above
                continue
            better = slope * middle + below > low_slope * middle + low
            low_slope, low = torch.where(better, slope, low_slope), torch.where(better, below, low)
            better = slope * middle + above < high_slope * middle + high
            high_slope, high = torch.where(better, slope, high_slope), torch.where(better, above, high)
        return Lines(low_slope, low, high_slope, high)

    def _slopes(self, box: Box) -> list[Tensor]:
        """Candidates for slopes; every slope gives valid bounds, so differences may replace tangents."""
        middle, width = (box.low + box.high) / 2, box.high - box.low
        found = [self._slope(at) for at in (middle, box.low, box.high)]
        chord = (self.function(box.high) - self.function(box.low)) / torch.where(width > 1e-6, width, 1.0)
        return [torch.where(width > 1e-6, chord, found[0]), *found]

    def _slope(self, at: Tensor) -> Tensor:
        return (self.function(at + 1e-5) - self.function(at - 1e-5)) / 2e-5

    def _sampled(self, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """Points (P, N, ...) that divide the interval, their values, and the bound between them (N, ...)."""
        shares = torch.linspace(0, 1, GRID + 1, dtype=box.low.dtype, device=box.low.device)
        width = box.high - box.low
        points = box.low + shares.view(-1, *[1] * box.low.dim()) * width
        points[-1] = box.high
        if self.kinks:
            inside = [torch.minimum(torch.maximum(box.low, _at(kink, box)), box.high) for kink in self.kinks]
            points = torch.cat([points, torch.stack(inside)])
        return points, self.function(points), self.curvature * (width / GRID) ** 2 / 8


def _at(kink: float, box: Box) -> Tensor:
    return torch.full_like(box.low, kink)


def _offsets(points: Tensor, values: Tensor, slope: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of f(x) − slope · x on the interval: (N, ...) each, with room for the rounding of float64."""
    off = values - slope * points
    size = values.abs().amax(0) + (slope * points).abs().amax(0)
    room = room + ROUNDING * size + 1e-300
    return off.amin(0) - room, off.amax(0) + room
