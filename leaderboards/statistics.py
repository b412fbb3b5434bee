"""Mean and spread over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """One number over seeds: mean, sample standard deviation (None for a single value), count."""

    mean: float
    std: float | None
    n: int


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, correctly rounded, so that equal values give exactly that value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("the mean of no values is undefined")
    return float(statistics.mean(map(float, values)))


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation, sqrt(Σ (v − mean)² / (n − 1)); None for a single value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("the standard deviation of no values is undefined")
    return float(statistics.stdev(map(float, values))) if len(values) > 1 else None


def over_seeds(values: Sequence[float | None]) -> Summary | None:
    """Summary of one value a seed; None when a seed lacks it, since a mean of the rest is another number."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    return Summary(mean(present), standard_deviation(present), len(present))
