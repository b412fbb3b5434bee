"""How lengths published for images of 32 pixels carry over to other sizes."""

from __future__ import annotations

from torch import Tensor

PUBLISHED_SIDE = 32
LEAST_SCALE = 0.5
"""Below 16 pixels lengths shrink no further: a blur much shorter than a pixel could not be seen."""


def scale_of(x: Tensor) -> float:
    """Pixels of ``x`` to one of 32: shorter side / 32, at least one half."""
    return max(min(x.shape[2:]) / PUBLISHED_SIDE, LEAST_SCALE)
