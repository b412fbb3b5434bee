"""Checks whether a model is better on the measured points than on held-out or new images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, fisher_exact
from torch import Tensor, nn

from advbench.data import DataSet, Split
from advbench.data.registry import DATASETS
from advbench.evaluation.stochastic import logits_of
from attacks_pool import Attack
from attacks_pool.calling.randomness import keyed_generator, uniform
from attacks_pool.norms import project
from leaderboards import Flag

WANTED = 200
"""The most held-out points to use."""
CRAFTED = 100
"""How many held-out points are attacked, and how many points per side are crafted on another model."""
LEAST_POINTS = 50
"""The fewest points per side that are compared."""
LEAST_DIFFERENCE, LARGEST_P = 0.1, 0.001
CODE = "better-on-measured-points"
WORSE = "worse-on-new-images"
NEW, LEAST_NEW = 50, 30
"""How many new images are made, and the fewest that are compared."""
TARGETS = 2
"""How many images of other classes each point moves towards."""
LEAST_LOSS, LEAST_CLEAN_LOSS, LARGEST_P_NEW = 0.3, 0.4, 1e-4
"""How much worse accuracy on new images must be, under attack and clean, for a flag.

On digits, MNIST and CIFAR-10, honest networks were at most 8 points worse under attack on 200 images (15 on
50), and at most 16 points worse clean.
"""
Bools = NDArray[np.bool_]


def held_out(data: DataSet) -> Split | None:
    """Points that no run measures: validation points, and also training points if those are few.

    A model does at least as well on points that it was trained on, so these can hide memorisation but never
    falsely show it. Data of the user's have no such points:
    their test images may be easier than their training images.
    """
    if data.name not in DATASETS or not len(data.train):
        return None
    validation, train = data.validation, data.train
    missing = max(WANTED - len(validation), 0)
    if not missing:
        return validation.first(WANTED)
    return Split(
        torch.cat([validation.x, train.images[:missing]]), torch.cat([validation.y, train.y[:missing]])
    )


def unseen_flags(
    model: nn.Module, surrogate: nn.Module, measured: Split, others: Split, attack: Attack, seed: int
) -> Iterator[Flag]:
    """``better-on-measured-points``, by points that were crafted on another model.

    The model is queried near held-out images before it is queried with these images. A model that repeats
    earlier answers near an image, wherever it stores them, then has no answer to repeat.

    Args:
        model: maps images to logits.
        surrogate: the model that points are crafted on.
        measured: test points, which the model has already seen.
        others: held-out points, which it has not.
        attack: the search on the surrogate.
        seed: the key of every draw.
    """
    count = min(len(measured), len(others), CRAFTED)
    right = []
    for number, split in enumerate((others, measured)):
        x, y = split.images[:count], split.y[:count]
        crafted = attack(surrogate, x, y, generator=keyed_generator("unseen", seed, number), exact=True)
        right.append((logits_of(model, crafted, seed).argmax(1) == y).cpu().numpy())
    yield from _compared("when crafted on another model", attack.text, right[1], right[0])


def memorisation_flags(
    clean: Bools, robust: Bools, clean_there: Bools, robust_there: Bools, attack: Attack
) -> Iterator[Flag]:
    """``better-on-measured-points``: measured points are right more often than held-out points.

    A model that has never seen the test set does as well on other points of the same kind. A model that was
    trained on it, or that looks answers up, does better: by a one-sided Fisher's exact test, and by at least
    ten percentage points.

    Args:
        clean, robust: (n,) whether measured test points are correct clean, and also after ``attack``.
        clean_there, robust_there: (m,) the same for held-out points.
        attack: the probe.
    """
    sides = (
        ("clean", "clean", clean, clean_there),
        (f"under {attack.name}", attack.text, robust[: len(clean)], robust_there),
    )
    for words, text, here, there in sides:
        if found := list(_compared(words, text, here, there)):
            yield found[0]
            return


def _compared(words: str, text: str, here: Bools, there: Bools) -> Iterator[Flag]:
    """The flag if measured points are right more often than others; ``words`` describe the situation."""
    if min(len(here), len(there)) < LEAST_POINTS:
        return
    counts = [[int(side.sum()), len(side) - int(side.sum())] for side in (here, there)]
    difference = float(here.mean() - there.mean())
    p = float(fisher_exact(counts, alternative="greater").pvalue)
    if difference >= LEAST_DIFFERENCE and p < LARGEST_P:
        message = (
            f"{words}, {100 * here.mean():.1f} % of the measured points are classified correctly, but only "
            f"{100 * there.mean():.1f} % of others: the model may have memorised the measured points"
        )
        measured, others = counts
        yield Flag.of(
            CODE, message, attack=text, measured=measured, held_out=others, difference=difference, p=p
        )


def composed(data: Split, seed: int, most: int = NEW) -> tuple[Split, Tensor]:
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
        ("clean", clean, clean_new, LEAST_CLEAN_LOSS),
        ("under attack", robust[both], robust_new[both], LEAST_LOSS),
    )
    for words, known, new, least in sides:
        if len(known) < LEAST_NEW or known.mean() - new.mean() < least:
            continue
        lost, won = int((known & ~new).sum()), int((~known & new).sum())
        p = float(binomtest(lost, lost + won, alternative="greater").pvalue)
        if p < LARGEST_P_NEW:
            message = (
                f"{words}, {100 * known.mean():.1f} % of {len(known)} test images are classified correctly, "
                f"but only {100 * new.mean():.1f} % of images made of their halves: the model may have "
                "memorised the data set"
            )
            right, right_new = int(known.sum()), int(new.sum())
            difference = float(known.mean() - new.mean())
            counts = {"points": len(known), "right": right, "right_new": right_new}
            yield Flag.of(WORSE, message, attack=attack, **counts, difference=difference, p=p)
            return
