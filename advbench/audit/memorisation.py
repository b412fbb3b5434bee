"""Whether a model is better on the points that were measured than on others of the same data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from advbench.data import DataSet, Split
from advbench.data.registry import FOLDER
from attacks_pool import Attack
from leaderboards import Flag

WANTED = 200
"""Points held out, if the data set has them."""
LEAST_POINTS = 50
"""Fewest points on either side that are compared."""
LEAST_DIFFERENCE, LARGEST_P = 0.1, 0.001
CODE = "better-on-measured-points"
Bools = NDArray[np.bool_]


def held_out(data: DataSet) -> Split | None:
    """Points that no run measures: validation points, and training points where those are few.

    A model does no worse on points that it was trained on, so these hide memorisation and never feign it. A
    folder's test images may be easier than its training images, so none of those are compared.
    """
    if data.name.startswith(FOLDER):
        return None
    validation, train = data.validation, data.train
    missing = max(WANTED - len(validation), 0)
    if not missing:
        return Split(validation.x[:WANTED], validation.y[:WANTED])
    return Split(torch.cat([validation.x, train.x[:missing]]), torch.cat([validation.y, train.y[:missing]]))


def memorisation_flags(
    clean: Bools, robust: Bools, clean_there: Bools, robust_there: Bools, attack: Attack
) -> Iterator[Flag]:
    """``better-on-measured-points``: measured points are right more often than points held out.

    A model that has never met the test set does as well on other points of the same kind. One that was
    trained on it, or that looks answers up, does better: Fisher's exact test, one-sided, and a difference of
    ten points at least.

    Args:
        clean, robust: (n,) measured test points that are right clean, and after ``attack`` too.
        clean_there, robust_there: (m,) the same of points held out.
        attack: the probe.
    """
    if min(len(clean), len(clean_there)) < LEAST_POINTS:
        return
    sides = (("clean", clean, clean_there), (f"under {attack.name}", robust[: len(clean)], robust_there))
    for words, here, there in sides:
        counts = [
            [int(here.sum()), len(here) - int(here.sum())],
            [int(there.sum()), len(there) - int(there.sum())],
        ]
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
                    "attack": attack.text if words != "clean" else "clean",
                    "measured": counts[0],
                    "held_out": counts[1],
                    "difference": difference,
                    "p": p,
                },
            )
            return
