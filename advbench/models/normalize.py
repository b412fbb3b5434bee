"""Normalisation as a layer, so that a model takes images in [0, 1] and attacks see its true gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacks_pool.errors import InputError


class Normalize(nn.Module):
    """(x − mean) / std for each channel of ``x`` (N, C, H, W).

    Args:
        mean: One value per channel, in the units of ``x``.
        std: One value per channel, each above 0.

    Raises:
        InputError: The statistics are empty, not finite, differ in length, or a deviation is not positive; in
            ``forward``, the images have another number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std):
            raise InputError(
                f"normalisation has {len(mean)} means and {len(std)} deviations: give one of each per channel"
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise InputError(
                f"normalisation by mean {tuple(mean)} and std {tuple(std)}: "
                "values must be finite and deviations positive"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised images, of the shape of ``x``."""
        # Broadcasting would silently turn one channel into three.
        if x.dim() != 4 or x.shape[1] != self.mean.shape[1]:
            raise InputError(
                f"normalisation of {self.mean.shape[1]} channels got images of shape {tuple(x.shape)}"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The statistics."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
