"""Blur corruptions: defocus, glass, motion and zoom."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from attacks_pool.calling.randomness import drawn_for, uniform
from attacks_pool.rendering.scale import scale_of
from attacks_pool.rendering.transforms import blur, convolve, pixel_grid, sample, zoom

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
"""Per severity: radius of the disc, and standard deviation of the blur that smooths its rim."""
GLASS = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
"""Per severity: standard deviation of the blur, longest swap, number of rounds."""
MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
"""Per severity: half the window, and standard deviation."""
ZOOM = (0.06, 0.11, 0.16, 0.21, 0.26)
"""Per severity: zoom factors run from 1 to 1 plus this (exclusive), in steps of 0.01."""


def defocus_blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Defocus blur: convolution with a smoothed disc of radius 0.3 … 1.5 pixels (at side 32)."""
    return convolve(x, spread(disc(*DEFOCUS[severity - 1]), scale_of(x))).clamp(0, 1)


def disc(radius: float, rim: float) -> Tensor:
    """A disc smoothed by 3 × 3 Gaussian weights of ``rim`` pixels; its side is odd, its sum 1, in float64."""
    half = int(radius) + 1
    at = torch.arange(-half, half + 1, dtype=torch.float64)
    flat = (at[:, None].square() + at.square() <= radius**2).double()
    weights = torch.exp(-0.5 * (torch.arange(-1, 2, dtype=torch.float64) / rim).square())
    smoothed = convolve(flat[None, None], torch.outer(weights, weights))[0, 0]
    return smoothed / smoothed.sum()


def spread(kernel: Tensor, scale: float) -> Tensor:
    """Scale the offsets of ``kernel`` by ``scale``, distributing each weight over the nearest pixels.

    At scale 1 it is the kernel itself. Rounding the radius instead would remove blurs of less than a pixel.
    """
    old = kernel.shape[0] // 2
    wide = max(scale, 1.0)
    new = math.ceil(old * scale + wide) - 1
    ends = torch.arange(-new, new + 1, dtype=torch.float64)
    starts = scale * torch.arange(-old, old + 1, dtype=torch.float64)
    tents = (1 - (ends[:, None] - starts).abs() / wide).clamp_min(0)
    moved = tents @ kernel @ tents.T
    return moved / moved.sum()


def glass_blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Glass blur: blur, swap pixels with nearby ones at random once or twice, blur again."""
    sigma, reach, rounds = GLASS[severity - 1]
    scale = scale_of(x)
    reach = max(1, round(reach * scale))
    blurred = blur(x, sigma * scale)
    order = _swapped(x, reach, rounds, generator).to(x.device)
    index = order[:, None].expand(-1, x.shape[1], -1)
    swapped = blurred.flatten(2).gather(2, index).view_as(x)
    return blur(swapped, sigma * scale).clamp(0, 1)


def _swapped(x: Tensor, reach: int, rounds: int, generator: torch.Generator) -> Tensor:
    """(N, H·W) source index of each pixel after all swaps, which run in turn from the last pixel backwards.

    A pixel is swapped with one up to ``reach`` above and to the left, or up to ``reach`` − 1 the other way.
    """
    images, height, width = len(x), *x.shape[2:]
    total, rows = drawn_for(generator, x)
    order = np.tile(np.arange(height * width), (images, 1)).T.copy()
    everyone = np.arange(images)
    for _ in range(rounds):
        shape = (total, height, width, 2)
        every = torch.randint(-reach, reach, shape, generator=generator, device=generator.device)
        moves = every.cpu()[rows.cpu()].numpy()
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                move = moves[:, row, column]
                here = row * width + column
                other = (row + move[:, 0]) * width + column + move[:, 1]
                kept = order[here].copy()
                order[here] = order[other, everyone]
                order[other, everyone] = kept
    return torch.from_numpy(order.T.copy())


def motion_blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Motion blur: a one-sided Gaussian trail, at an angle within ±45 degrees of the horizontal."""
    half, sigma = MOTION[severity - 1]
    return trail(x, half, sigma, uniform(x[:, 0, 0, 0], generator, -45.0, 45.0))


def trail(x: Tensor, half: float, sigma: float, degrees: Tensor) -> Tensor:
    """Mean of ``x`` shifted by 0, 1, … pixels along ``degrees`` (N,), weighted by exp(−i²/2σ²).

    ``half`` and ``sigma`` are in pixels at side 32; the window has 2 · half + 1 pixels; shifts are rounded.
    """
    scale = scale_of(x)
    window = 2 * max(1, round(half * scale)) + 1
    weights = torch.exp(-0.5 * (torch.arange(window, dtype=torch.float64) / (sigma * scale)).square())
    radians = degrees.double().view(-1, 1, 1) * (math.pi / 180)
    rows, columns = pixel_grid(x)
    result = torch.zeros_like(x)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        if weight > 1e-6:
            down, right = ((step * part).round().to(x.dtype) for part in (radians.sin(), radians.cos()))
            result = result + weight * sample(x, rows + down, columns + right, "edge")
    return result.clamp(0, 1)


def zoom_blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Zoom blur: mean of the image and of copies enlarged by 1, 1.01, … up to 1.05 … 1.25.

    It zooms about the exact centre; the published code rounds its crop to whole pixels.
    """
    count = round(100 * ZOOM[severity - 1])
    total = x + sum(zoom(x, 1 + step / 100) for step in range(count))
    return (total / (count + 1)).clamp(0, 1)
