"""Makes gradients usable that floating point cannot represent: infinite, NaN, or too large to square."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEEPEST = 1e12
"""Larger entries count as infinite, because squares and sums of such entries soon overflow float32."""
INSIDE = 1 / 255
"""Distance from the edge of the box at which an infinite slope is measured: one step of an 8-bit image."""

Again = Callable[[Tensor], Tensor]
"""Computes the gradient at other points; argument and result have the same shape."""


def usable(gradient: Tensor, x: Tensor, again: Again | None = None, *, boxed: bool = True) -> Tensor:
    """Replace entries of a gradient (N, C, H, W) that an ascent step cannot use; ordinary rows are unchanged.

    A model that clamps its images has zero gradient at the edges of the box, where many images have most of
    their pixels. If all those entries are 0, they are measured inside the box. NaN entries become 0. An
    infinite entry keeps its sign and takes the size of the slope ``INSIDE`` away from ``x``, towards the
    middle of the box. If that is not finite either, it takes the size of the row's largest entry.

    Args:
        gradient: the gradient of the quantity to maximise.
        x: the points where it was computed, with the same shape.
        again: computes the gradient at other points; without it, no slope is measured.
        boxed: the step moves ``x`` itself inside [0, 1]. Infinite entries that point out of the box then
            become 0, because they would outweigh the usable ones.
    """
    return measured(gradient, x, again, boxed=boxed)[0]


def measured(
    gradient: Tensor, x: Tensor, again: Again | None = None, *, boxed: bool = True
) -> tuple[Tensor, Tensor]:
    """Like :func:`usable`; also returns which rows (N,) have entries whose true size stays unknown."""
    if boxed and again is not None:
        gradient = _off_the_walls(gradient, x, again)
    none = gradient.new_zeros(len(gradient), dtype=torch.bool)
    if gradient.numel() == 0 or _is_ordinary(gradient):
        return gradient, none
    steep = gradient.abs() > STEEPEST
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    if not bool(steep.any()):
        return gradient, none
    if boxed:
        stopped = gradient.isinf() & torch.where(gradient > 0, x >= 1, x <= 0)
        gradient, steep = gradient.masked_fill(stopped, 0.0), steep & ~stopped
    if again is not None and bool(steep.any()):
        inside = again(torch.where(steep, torch.where(x < 0.5, x + INSIDE, x - INSIDE), x)).abs()
        known = steep & (inside > 0) & (inside <= STEEPEST)
        gradient = torch.where(known, gradient.sign() * inside, gradient)
        steep = steep & ~known
    return _scaled(gradient), steep.flatten(1).any(1)


def _is_ordinary(gradient: Tensor) -> bool:
    """Whether all entries are finite and at most ``STEEPEST`` in size."""
    low, high = gradient.aminmax()
    return float(low) >= -STEEPEST and float(high) <= STEEPEST  # false for NaN


def _off_the_walls(gradient: Tensor, x: Tensor, again: Again) -> Tensor:
    """If all pixels at 0 or 1 have zero gradient, use the gradient ``INSIDE`` the box for these pixels."""
    if bool(gradient.all()):
        return gradient
    for rows in (slice(1), slice(None)):  # one image nearly always decides, faster than the batch
        walls = (x[rows] <= 0) | (x[rows] >= 1)
        if bool((walls & (gradient[rows] != 0)).any()):
            return gradient
    if not bool(walls.any()) or not bool(gradient.any()):
        return gradient
    return torch.where(walls, again(x.clamp(INSIDE, 1 - INSIDE)), gradient)


def _scaled(gradient: Tensor) -> Tensor:
    """Divide rows with entries above ``STEEPEST`` by their largest one; infinite entries become as large."""
    rows = (-1,) + (1,) * (gradient.ndim - 1)
    infinite = gradient.isinf()
    finite = gradient.masked_fill(infinite, 0.0)
    largest = finite.abs().flatten(1).amax(1)
    finite = torch.where((largest > STEEPEST).view(rows), finite / largest.clamp_min(1.0).view(rows), finite)
    largest = torch.where(largest > STEEPEST, 1.0, largest)
    return torch.where(infinite, gradient.sign() * torch.where(largest > 0, largest, 1.0).view(rows), finite)
