"""The nearest point of a hyperplane inside the box [0, 1], for many points at once."""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS = 24
BEYOND = 1e30


def step_to_hyperplane(x: Tensor, w: Tensor, gain: Tensor, norm: str) -> Tensor:
    """The shortest d with ⟨w, d⟩ = gain and x + d in [0, 1], in l_∞, l_2 or l_1.

    Where the box does not reach that far, d goes to the corner of largest ⟨w, d⟩; a zero ``w`` gives d = 0.

    Args:
        x: points (M, D) in [0, 1]; ``w`` (M, D) normals; ``gain`` (M,), of either sign.
        norm: ``linf``, ``l2`` or ``l1``.

    Returns:
        (M, D).
    """
    size = w.abs()
    largest = size.amax(1, keepdim=True).clamp_min(1e-38)
    size = size / largest
    direction = (w * torch.where(gain < 0, -1.0, 1.0)[:, None]).sign()
    room = (direction.clamp_min(0) - x).abs()
    gain = gain.abs() / largest.squeeze(1)
    if norm == "l1":
        return direction * _greedy(size, room, gain)
    if norm == "linf":
        return direction * torch.minimum(_level(size, room, size * room, gain), room)
    breaks = room / size.clamp_min(1e-38)
    return direction * torch.minimum(_level(size.square(), breaks, size * room, gain) * size, room)


def _level(slopes: Tensor, breaks: Tensor, worth: Tensor, gain: Tensor) -> Tensor:
    """t (M, 1) where the sum of the rising pieces min(slope · t, worth) is ``gain``.

    A piece rises until t reaches its break. The sum is concave and piecewise linear, so Newton's method from
    the left never overshoots, and it ends on the piece of the root. A row that is there stays as it is,
    whatever the others do.
    """
    # Out of reach: every piece goes to its break.
    short = gain >= worth.sum(1)
    level = torch.where(short, BEYOND, gain / slopes.sum(1).clamp_min(1e-38))
    for _ in range(NEWTON_STEPS):
        rising = (breaks > level[:, None]).to(slopes.dtype)
        slope = torch.linalg.vecdot(slopes, rising)
        missing = gain - torch.linalg.vecdot(worth, 1 - rising)
        ahead = missing / slope.clamp_min(1e-38)
        moving = (ahead > level * (1 + 1e-6)) & (slope > 0) & ~short
        if not moving.any():
            break
        level = torch.where(moving, ahead, level)
    return level[:, None]


def _greedy(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """Lengths that fill the pixels of largest ``size`` to the brim until ``gain`` is reached."""
    size, order = size.sort(dim=1, descending=True)
    room = room.gather(1, order)
    worth = size * room
    before = worth.cumsum(1) - worth
    share = ((gain[:, None] - before) / worth.clamp_min(1e-38)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room)
