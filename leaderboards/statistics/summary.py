"""Mean, spread and interval over seeds; p-values of many tests at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Summary:
    """One number over seeds: mean, sample standard deviation (None for a single value), count.

    ``low`` and ``high`` bound the 95 % interval of the mean (see `leaderboards.statistics.contrasts`); None
    if it was not requested, or if the outcomes of single points are not available.
    """

    mean: float
    std: float | None
    n: int
    low: float | None = None
    high: float | None = None


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; for equal values it is exactly that value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("the mean of no values is undefined")
    # `statistics.mean` uses exact fractions and is forty times slower, and boards have thousands of rows.
    return float(values[0]) if _equal(values) else math.fsum(values) / len(values)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation, sqrt(Σ (v − mean)² / (n − 1)); None for a single value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("the standard deviation of no values is undefined")
    if len(values) == 1:
        return None
    if _equal(values):
        return 0.0
    center = mean(values)
    return math.sqrt(math.fsum([(value - center) ** 2 for value in values]) / (len(values) - 1))


def _equal(values: Sequence[float]) -> bool:
    return list(values).count(values[0]) == len(values)


def over_seeds(values: Sequence[float | None]) -> Summary | None:
    """The summary of one value per seed; None if a seed lacks it, since a mean of the rest would mislead."""
    present = [value for value in values if value is not None]
    if not present or None in values:
        return None
    return Summary(mean(present), standard_deviation(present), len(present))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """The adjusted p-values of m tests (Holm 1979), in the given order; they control the family-wise error.

    p̃_(i) = max_{j ≤ i} min(1, (m − j + 1) · p_(j)), where p_(1) ≤ … ≤ p_(m) are the sorted p-values.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    steps = np.minimum(1.0, given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted
