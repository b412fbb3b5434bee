"""Checks whether a model does as well on new images as on images of the data set."""

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
"""How many new images are made, and the fewest that are compared."""
TARGETS = 2
"""How many images of other classes each point moves towards."""
LEAST_DIFFERENCE, LEAST_CLEAN, LARGEST_P = 0.3, 0.4, 1e-4
"""How much worse accuracy on new images must be, under attack and clean, for a flag.

On digits, MNIST and CIFAR-10, honest networks were at most 8 points worse under attack on 200 images (15 on
50), and at most 16 points worse clean.
"""
Bools = NDArray[np.bool_]


def composed(data: Split, seed: int, most: int = POINTS) -> tuple[Split, Tensor]:
    """Make images that are in no split: the upper half of one and the lower half of another of its class.

    Halves keep their contrast, unlike a mean of two images, whose fainter strokes are less robust. An honest
    network is as accurate on these images as on others. A network that looks images up finds neither half.

    Args:
        data: images and labels; each image's partner is drawn at random with ``seed``.
        most: how many new images to make.

    Returns:
        The new images, and for each the index in ``data`` of its upper half.
    """
    x, y, rows = data.x, data.y, data.x.shape[2] // 2
    order = uniform(x.new_zeros(len(x), len(x)), keyed_generator("composed", seed))
    order[(y[:, None] != y) | torch.eye(len(x), dtype=torch.bool, device=x.device)] = 2.0
    first, partner = order.min(1)
    places = (first < 2).nonzero().squeeze(1)[: most if rows else 0]
    new = torch.cat([x[places][:, :, :rows], x[partner[places]][:, :, rows:]], 2)
    return Split(new, y[places]), places


def withstands(model: nn.Module, points: Split, others: Split, norm: str, eps: float, seed: int) -> Bools:
    """(n,) whether each point stays correct when it moves straight towards images of other classes.

    This finds the border between two images that a model has stored, even without a gradient. Each point
    moves as far as ``eps`` allows towards the `TARGETS` nearest of ``others``.
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
    """``worse-on-new-images``, from pairs of an image and a new image that contains half of it.

    Args:
        clean, robust: (n,) whether each image is correct clean, and also after the attack.
        clean_new, robust_new: (n,) the same for the new images, whose attack is not stronger.
        attack: the canonical text of the weaker attack.
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
                    f"{words}, {100 * known.mean():.1f} % of {len(known)} test images are classified "
                    f"correctly, but only {100 * new.mean():.1f} % of images made of their halves: the "
                    "model may have memorised the data set"
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
