"""Whether a model does as well on images that are in no data set as on those that are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor, nn

from advbench.data import Split
from advbench.evaluation.stochastic import logits_of
from attacks_pool.calling.randomness import keyed_generator, uniform
from attacks_pool.norms import project
from leaderboards import Flag

CODE = "worse-on-new-images"
POINTS, LEAST_POINTS = 50, 30
"""New images that are made, and the fewest that are compared."""
TARGETS = 2
"""Images of other classes that each point moves towards."""
LEAST_DIFFERENCE, LEAST_CLEAN, LARGEST_P = 0.3, 0.4, 1e-4
"""How much worse new images must be under attack, and clean.

On digits, MNIST and CIFAR-10 honest networks were at most 8 points worse under attack on 200 images (15 on
50), and at most 16 clean.
"""
Bools = NDArray[np.bool_]


def composed(data: Split, seed: int, most: int = POINTS) -> tuple[Split, Tensor]:
    """Images that are in no split: the upper half of one, the lower half of another of the same class.

    Halves keep all contrast, which a mean of two images does not: strokes of half the strength are less
    robust. An honest network is as good on these images as on others. One that looks images up knows neither
    half of what it looks for.

    Args:
        data: images and labels; each image's partner is drawn at random by ``seed``.
        most: how many new images to make.

    Returns:
        The new images, and for each the place in ``data`` of the image above.
    """
    x, y, rows = data.x, data.y, data.x.shape[2] // 2
    order = uniform(x.new_zeros(len(x), len(x)), keyed_generator("composed", seed))
    order[(y[:, None] != y) | torch.eye(len(x), dtype=torch.bool, device=x.device)] = 2.0
    first, partner = order.min(1)
    places = (first < 2).nonzero().squeeze(1)[: most if rows else 0]
    new = torch.cat([x[places][:, :, :rows], x[partner[places]][:, :, rows:]], 2)
    return Split(new, y[places]), places


def withstands(model: nn.Module, points: Split, others: Split, norm: str, eps: float, seed: int) -> Bools:
    """(n,) points that stay right when they move straight towards images of other classes.

    This finds the edge between two images that a model has stored, where it has no gradient to follow. Each
    point moves as far as ``eps`` allows towards the `TARGETS` nearest of ``others``.
    """
    distance = torch.cdist(points.x.flatten(1), others.x.flatten(1))
    distance[points.y[:, None] == others.y] = torch.inf
    count = min(TARGETS, int(torch.isfinite(distance).sum(1).min()))
    left = torch.ones_like(points.y, dtype=torch.bool)
    for places in distance.topk(count, largest=False).indices.T:
        moved = project(others.x[places], points.x, eps, norm).clamp(0, 1)
        left &= logits_of(model, moved, seed).argmax(1) == points.y
    return left.cpu().numpy()


def composed_flags(
    clean: Bools, robust: Bools, clean_new: Bools, robust_new: Bools, attack: str
) -> Iterator[Flag]:
    """``worse-on-new-images``, from pairs of an image and the new one that it is half of.

    Args:
        clean, robust: (n,) images that are right clean, and after the attack too.
        clean_new, robust_new: (n,) the same of new images; their attack is no stronger.
        attack: the canonical text of the weaker one.
    """
    both = clean & clean_new
    sides = (
        ("clean", clean, clean_new, LEAST_CLEAN),
        ("under attack", robust[both], robust_new[both], LEAST_DIFFERENCE),
    )
    for words, known, new, least in sides:
        if len(known) < LEAST_POINTS or known.mean() - new.mean() < least:
            continue
        lost, won = int((known & ~new).sum()), int((~known & new).sum())
        p = float(binomtest(lost, lost + won, alternative="greater").pvalue)
        if p < LARGEST_P:
            yield Flag(
                code=CODE,
                message=(
                    f"{words}, {100 * known.mean():.1f} % of {len(known)} test images are right and "
                    f"{100 * new.mean():.1f} % of images made of their halves: the model may know the "
                    "images of the data set by heart"
                ),
                evidence={
                    "attack": attack,
                    "points": len(known),
                    "right": int(known.sum()),
                    "right_new": int(new.sum()),
                    "difference": float(known.mean() - new.mean()),
                    "p": p,
                },
            )
            return
