"""Finds numbers of a record that no run can have, so that absurd numbers are never summed or shown."""

import math
import sys
from collections.abc import Iterator
from typing import Final

from leaderboards.records.record import Record

MOST_SECONDS: Final = 10 * 366 * 24 * 3600
"""Ten years."""
MOST_PASSES: Final = 10**15
"""The most passes of a cell or training; 300 epochs of ImageNet with 50 steps per point take 2 · 10^10."""
MOST_METRIC: Final = 10**6
"""The largest absolute value of a metric; metrics are shares, decibels and ratios."""


def implausible(record: Record) -> Iterator[str]:
    """One line for each number that is larger than any run can have."""
    cells = [(f"stage {cell.stage}, {cell.attack}", cell) for cell in record.cells]
    cells += [(f"probe {cell.attack}", cell) for cell in record.audit.probes]
    for label, cell in cells:
        yield from _above(f"{label}: seconds", cell.seconds, MOST_SECONDS)
        yield from _above(f"{label}: forwards", cell.forwards, MOST_PASSES)
        yield from _above(f"{label}: backwards", cell.backwards, MOST_PASSES)
    cost = record.cost
    yield from _above("cost: training_seconds", cost.training_seconds, MOST_SECONDS)
    yield from _above("cost: evaluation_seconds", cost.evaluation_seconds, MOST_SECONDS)
    for name in ("training_forwards", "training_backwards", "parameters", "multiply_adds"):
        yield from _above(f"cost: {name}", getattr(cost, name), MOST_PASSES)
    for name, value in record.metrics.items():
        yield from _above(f"metrics: {name}", abs(value or 0.0), MOST_METRIC)


def _above(what: str, value: float, most: int) -> Iterator[str]:
    if value > most:
        # A huge integer such as 10^400 does not fit a float.
        shown = f"10^{math.log10(value):.0f}" if value > sys.float_info.max else f"{value:.2g}"
        yield f"{what} is {shown}, more than the {most:.2g} that any run can have"
