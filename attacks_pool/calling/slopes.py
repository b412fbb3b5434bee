"""Gradients that arithmetic would lose: infinite ones, and those too large to be squared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEEPEST = 1e12
"""A larger entry counts as infinite: squares and sums of such entries soon exceed float32."""
INSIDE = 1 / 255
"""How far from the edge of the box an infinite slope is measured: a step of an 8-bit image."""

Again = Callable[[Tensor], Tensor]
"""The gradient at other points, like the points."""


def usable(gradient: Tensor, x: Tensor, again: Again | None = None, *, boxed: bool = True) -> Tensor:
    """The gradient (N, C, H, W) in numbers that a step upwards can follow; ordinary rows are unchanged.

    A model that clamps its images has no slope at the walls of the box, where most pixels of many images
    lie: if the entries there are all 0, they are measured inside. An entry that is NaN becomes 0. An infinite
    one keeps its sign; its size is that of the slope ``INSIDE`` away from ``x``, towards the middle of the
    box. Where there is no number either, it is as large as the row's largest.

    Args:
        gradient: of what is to be raised.
        x: where it was taken, like ``gradient``.
        again: gives the gradient elsewhere; without it no slope is measured.
        boxed: the step moves ``x`` itself, inside [0, 1]; an infinite entry along which the box leaves no
            room then becomes 0, as it would drown those that can be followed.
    """
    return measured(gradient, x, again, boxed=boxed)[0]


def measured(
    gradient: Tensor, x: Tensor, again: Again | None = None, *, boxed: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`usable`, and which rows (N,) have lost the size of their slopes, because no number tells it."""
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
    """Whether all entries are numbers within ``STEEPEST``."""
    low, high = gradient.aminmax()
    return float(low) >= -STEEPEST and float(high) <= STEEPEST  # false for NaN


def _off_the_walls(gradient: Tensor, x: Tensor, again: Again) -> Tensor:
    """The gradient, with that of the points ``INSIDE`` for pixels at 0 or 1, where a whole batch has none."""
    if bool(gradient.all()):
        return gradient
    for rows in (slice(1), slice(None)):  # one image nearly always tells, sooner than all of them
        walls = (x[rows] <= 0) | (x[rows] >= 1)
        if bool((walls & (gradient[rows] != 0)).any()):
            return gradient
    if not bool(walls.any()) or not bool(gradient.any()):
        return gradient
    return torch.where(walls, again(x.clamp(INSIDE, 1 - INSIDE)), gradient)


def _scaled(gradient: Tensor) -> Tensor:
    """Rows with entries above ``STEEPEST`` divided by their largest, which infinite entries then equal."""
    rows = (-1,) + (1,) * (gradient.ndim - 1)
    infinite = gradient.isinf()
    finite = gradient.masked_fill(infinite, 0.0)
    largest = finite.abs().flatten(1).amax(1)
    finite = torch.where((largest > STEEPEST).view(rows), finite / largest.clamp_min(1.0).view(rows), finite)
    largest = torch.where(largest > STEEPEST, 1.0, largest)
    return torch.where(infinite, gradient.sign() * torch.where(largest > 0, largest, 1.0).view(rows), finite)
