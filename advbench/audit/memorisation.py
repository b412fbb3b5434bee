"""Checks whether a model is better on the measured points than on others of the same data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import fisher_exact
from torch import nn

from advbench.data import DataSet, Split
from advbench.data.registry import FOLDER
from advbench.evaluation.stochastic import logits_of
from attacks_pool import Attack
from attacks_pool.calling.randomness import keyed_generator
from leaderboards import Flag

WANTED = 200
"""The most held-out points to use."""
CRAFTED = 100
"""How many held-out points are attacked, and how many points per side are crafted on another model."""
LEAST_POINTS = 50
"""The fewest points per side that are compared."""
LEAST_DIFFERENCE, LARGEST_P = 0.1, 0.001
CODE = "better-on-measured-points"
Bools = NDArray[np.bool_]


def held_out(data: DataSet) -> Split | None:
    """Points that no run measures: validation points, and also training points if those are few.

    A model does at least as well on points that it was trained on, so these can hide memorisation but never
    falsely show it. Folders have no such points: their test images may be easier than their training images.
    """
    if data.name.startswith(FOLDER):
        return None
    validation, train = data.validation, data.train
    missing = max(WANTED - len(validation), 0)
    if not missing:
        return Split(validation.x[:WANTED], validation.y[:WANTED])
    return Split(torch.cat([validation.x, train.x[:missing]]), torch.cat([validation.y, train.y[:missing]]))


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
        x, y = split.x[:count], split.y[:count]
        crafted = attack(surrogate, x, y, generator=keyed_generator("unseen", seed, number))
        right.append((logits_of(model, crafted, seed).argmax(1) == y).cpu().numpy())
    yield from _compared("under points crafted on another model", attack.text, right[1], right[0])


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
        yield Flag(
            code=CODE,
            message=(
                f"{words}, {100 * here.mean():.1f} % of the measured points are right and "
                f"{100 * there.mean():.1f} % of others: the model may know the measured points by heart"
            ),
            evidence={
                "attack": text,
                "measured": counts[0],
                "held_out": counts[1],
                "difference": difference,
                "p": p,
            },
        )
