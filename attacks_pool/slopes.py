"""Gradients that arithmetic would lose: infinite ones, and those too large to be squared."""

from __future__ import annotations

import torch
from torch import Tensor

STEEPEST = 1e12
"""A row with a larger entry is rescaled: squares and sums of such entries soon exceed float32."""
BESIDE_INFINITY = 1e-6
"""The largest finite entry of a row, relative to the infinite ones."""


def usable(gradient: Tensor, x: Tensor | None = None) -> Tensor:
    """The gradient (N, C, H, W) in numbers that a step upwards can follow; ordinary rows are unchanged.

    An entry that is NaN becomes 0. In a row with infinite entries those become ±1, and the others keep their
    signs but shrink to 1e-6 or less, so that every norm's steepest direction is the limit as the slope grows.
    A row whose largest entry exceeds ``STEEPEST`` is divided by it.

    Args:
        gradient: of what is to be raised.
        x: where it was taken, like ``gradient``. An infinite entry along which the box [0, 1] leaves no room
            becomes 0, as it would otherwise drown those that can be followed.
    """
    return rescaled(gradient, x)[0]


def rescaled(gradient: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`usable`, and which rows (N,) were rescaled: their slopes have lost their size."""
    size = gradient.abs().flatten(1)
    if size.numel() == 0 or bool(size.amax() <= STEEPEST):  # false for NaN
        return gradient, gradient.new_zeros(len(gradient), dtype=torch.bool)
    infinite = gradient.isinf()
    if x is not None:
        infinite &= ~torch.where(gradient > 0, x >= 1, x <= 0)
    finite = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    rows = (-1,) + (1,) * (gradient.ndim - 1)
    largest = finite.abs().flatten(1).amax(1)
    unit = finite / largest.clamp_min(torch.finfo(finite.dtype).tiny).view(rows)
    vertical = infinite.flatten(1).any(1)
    steep = vertical | (largest > STEEPEST)
    mixed = torch.where(infinite, gradient.sign(), unit * BESIDE_INFINITY)
    steepened = torch.where(vertical.view(rows), mixed, unit)
    return torch.where(steep.view(rows), steepened, finite), steep
