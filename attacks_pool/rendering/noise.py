"""Noise corruptions: Gaussian, shot and impulse."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks_pool.calling.randomness import draw_seed, drawn_for, keyed_generator, normal, uniform

GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS = (500, 250, 100, 75, 50)
IMPULSES = (0.01, 0.02, 0.03, 0.05, 0.07)


def gaussian_noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise: clip(x + c · N(0, I)), c = 0.04 … 0.10."""
    return (x + GAUSSIAN[severity - 1] * normal(x, generator)).clamp(0, 1)


def shot_noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shot noise: clip(Poisson(c · x) / c), c = 500 … 50 photons at white."""
    photons, base = PHOTONS[severity - 1], draw_seed(generator)
    # The number of random numbers in a Poisson draw depends on its rate, so each image has its own generator.
    rates = (x * photons).cpu()
    rows = drawn_for(generator, x)[1].tolist()
    draws = zip(rows, rates, strict=True)
    counts = [torch.poisson(rate, generator=keyed_generator(base, row)) for row, rate in draws]
    return (torch.stack(counts) / photons).to(x.device, x.dtype).clamp(0, 1)


def impulse_noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Impulse noise: a share c = 0.01 … 0.07 of the values turns black or white."""
    hit = uniform(x, generator) < IMPULSES[severity - 1]
    return torch.where(hit, (uniform(x, generator) < 0.5).to(x.dtype), x)
