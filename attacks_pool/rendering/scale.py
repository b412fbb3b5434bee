"""Converts lengths published for images of 32 pixels to other image sizes."""

from __future__ import annotations

from torch import Tensor

PUBLISHED_SIDE = 32
LEAST_SCALE = 0.5
"""Lengths stop shrinking below 16 pixels, since a blur much shorter than a pixel would be invisible."""


def scale_of(x: Tensor) -> float:
    """Scale of lengths for ``x``: shorter side / 32, but at least one half."""
    return max(min(x.shape[2:]) / PUBLISHED_SIDE, LEAST_SCALE)
