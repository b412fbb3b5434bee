"""Randomised smoothing (Cohen, Rosenfeld and Kolter, arXiv:1902.02918), which needs only a model's logits.

It certifies another classifier: the *smoothed* one, which answers with the class that the model gives most
often to the image with Gaussian noise. A certificate says nothing about the model without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from attacks_pool.calling.guard import evaluation_mode, ordinary_mode
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import whole_number

SELECTED_BY = 100
"""Draws that choose the class, apart from those that count it."""
DRAWS = 100_000
ALPHA = 0.001
"""Probability that the certificate of a point is wrong."""
MOST_DRAWS = 10**9
BLOCK = 1000
"""Draws that share one generator; the batch of a device does not change them."""
IMAGES = 10_000_000
"""Number of image values that go through the model at once."""


@dataclass(frozen=True)
class Smoothing:
    """How to smooth a model.

    Attributes:
        sigma: standard deviation of the noise, in the units of the images.
        draws: number of noisy copies that count the class.
        alpha: probability that the certificate of a point is wrong.
        seed: determines all draws.

    Raises:
        InputError: a value is out of range.
    """

    sigma: float
    draws: int = DRAWS
    alpha: float = ALPHA
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"sigma={self.sigma} is out of range: it must be above 0 and finite")
        if not 1 <= whole_number("draws", self.draws) <= MOST_DRAWS:
            raise InputError(f"draws={self.draws} is out of range: it must be from 1 to {MOST_DRAWS}")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha={self.alpha} is out of range: it must be between 0 and 1")


@dataclass(frozen=True)
class Smoothed:
    """The smoothed classifier's answer to one image.

    Attributes:
        answer: its class, or None if it abstains.
        radius: l2 radius, in the units of the images, within which it answers the same; 0 if it abstains.
        counted: how many of the counting draws gave the class.
    """

    answer: int | None
    radius: float
    counted: int


def lower_confidence(successes: int, draws: int, alpha: float) -> float:
    """The Clopper-Pearson bound: the probability of success is at least this, but for a chance of alpha."""
    if successes == 0:
        return 0.0
    return float(beta.ppf(alpha, successes, draws - successes + 1))


def certified_radius(successes: int, draws: int, sigma: float, alpha: float) -> float:
    """σ·Φ⁻¹(p) with p the lower bound of the class's probability; 0 if p is not above a half."""
    least = lower_confidence(successes, draws, alpha)
    return sigma * float(norm.ppf(least)) if least > 0.5 else 0.0


def radius_needed(ball: str, eps: float, values: int) -> float:
    """The l2 radius that contains a ball of radius ``eps`` in images of ``values`` numbers.

    Raises:
        InputError: the norm is none of linf, l2, l1.
    """
    factors = {"linf": math.sqrt(values), "l2": 1.0, "l1": 1.0}
    if ball not in factors:
        raise unknown("norm", ball, factors)
    return eps * factors[ball]


@ordinary_mode()
@torch.no_grad()
def smoothed(
    model: nn.Module,
    image: Tensor,
    how: Smoothing,
    *,
    key: object = 0,
    told: Callable[[int], None] | None = None,
) -> Smoothed:
    """The smoothed classifier's class of one image, and the radius within which it stays.

    Args:
        model: images (N, C, H, W) to logits (N, K); it also gets values outside of [0, 1].
        image: (C, H, W), on the device of the model.
        how: noise, draws and confidence.
        key: what distinguishes this image's draws from those of others.
        told: called with the number of draws made, from time to time.
    """
    with evaluation_mode(model):
        chosen = int(_counts(model, image, how, SELECTED_BY, ("choose", key), None).argmax())
        counted = int(_counts(model, image, how, how.draws, ("count", key), told)[chosen])
    radius = certified_radius(counted, how.draws, how.sigma, how.alpha)
    return Smoothed(chosen if radius > 0 else None, radius, counted)


def _counts(
    model: nn.Module,
    image: Tensor,
    how: Smoothing,
    draws: int,
    key: tuple[object, ...],
    told: Callable[[int], None] | None,
) -> Tensor:
    """How often each class was the answer, (K,). Answers with a logit that is not a number count for none."""
    total: Tensor | None = None
    at_once = max(min(IMAGES // image.numel(), BLOCK), 1)
    for block in range(math.ceil(draws / BLOCK)):
        generator = keyed_generator("smoothing", how.seed, *key, block)
        size = min(BLOCK, draws - block * BLOCK)
        noise = torch.randn(BLOCK, *image.shape, generator=generator)[:size]
        for part in torch.split(noise, at_once):
            logits = model(image + how.sigma * part.to(image.device))
            answers = logits.argmax(1)[~logits.isnan().any(1)]
            counts = torch.bincount(answers, minlength=logits.shape[1])
            total = counts if total is None else total + counts
        if told is not None:
            told(block * BLOCK + size)
    assert total is not None
    return total
