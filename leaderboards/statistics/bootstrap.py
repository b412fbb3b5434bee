"""The bootstrap over test points: replicates of a metric, for each seed.

A replicate draws the test points with replacement (Davison and Hinkley 1997), jointly for all seeds, stages
and attacks, because all of them use the same points. With draw counts w (Σ_k w_k = n) the replicate of
one seed's metric is

    metric*_s = mean_j max_m (1/n) Σ_k w_k · terms[s, m, j, k]     (see `leaderboards.statistics.points`).

Points are drawn within the blocks on which the same attacks were measured, because the sizes of the blocks
are fixed, not random. All draws depend only on the numbers of points, so that the same runs give the same
interval, and rows with the same points get the same draws, which makes their differences paired. For the
variance from seeds see `leaderboards.statistics.contrasts`.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.statistics.points import Floats

REPLICATES: Final = 2000
LEVEL: Final = 0.95
_KEY: Final = 20_230_210
_BLOCK: Final = 4_000_000
"""The most weights in memory at once."""
_COUNT: Final = np.uint16
_KEPT: Final = 2**26
"""The most bytes of draw counts to cache for the next metric; larger ones are drawn again each time."""


def point_weights(strata: Sequence[int], replicates: int = REPLICATES) -> Iterator[Floats]:
    """Yield the draw counts of every point, (rows, n) at a time, until there are ``replicates`` rows.

    ``strata`` are the ascending ends of the blocks of points; each row of a block sums to its length. The
    counts are multinomial: they count uniform draws of points.
    """
    rows = max(1, min(replicates, _BLOCK // strata[-1]))
    if np.dtype(_COUNT).itemsize * replicates * strata[-1] > _KEPT:
        yield from _drawn(strata, replicates, rows)
        return
    kept = _kept_counts(tuple(strata), replicates, rows)
    for begin in range(0, replicates, rows):
        yield kept[begin : begin + rows].astype(np.float64)


@lru_cache(maxsize=1)
def _kept_counts(strata: tuple[int, ...], replicates: int, rows: int) -> NDArray[np.uint16]:
    # Successive metrics, rows and boards have the same points.
    kept = np.empty((replicates, strata[-1]), dtype=_COUNT)
    begin = 0
    for drawn in _drawn(strata, replicates, rows):
        kept[begin : begin + len(drawn)] = drawn
        begin += len(drawn)
    return kept


def _drawn(strata: Sequence[int], replicates: int, rows: int) -> Iterator[Floats]:
    random = np.random.default_rng([_KEY, *strata])
    for begin in range(0, replicates, rows):
        yield _draw(random, strata, min(rows, replicates - begin))


def _draw(random: np.random.Generator, strata: Sequence[int], rows: int) -> Floats:
    weights = np.empty((rows, strata[-1]))
    start = 0
    for end in strata:
        width = end - start
        drawn = random.integers(0, width, (rows, width)) + np.arange(rows)[:, None] * width
        weights[:, start:end] = np.bincount(drawn.ravel(), minlength=rows * width).reshape(rows, width)
        start = end
    return weights


def replicates_of(terms: Sequence[Floats], strata: Sequence[int], count: int = REPLICATES) -> list[Floats]:
    """(S, count) bootstrap replicates of one metric for each of several rows that share their points.

    Args:
        terms: for each row, the terms (S, M, J, n) of `Outcomes.terms`.
        strata: ascending ends of the blocks of points, the last one being n.
    """
    points = strata[-1]
    flat = np.concatenate([one.reshape(-1, points) for one in terms])
    means = np.concatenate([flat @ weights.T for weights in point_weights(strata, count)], axis=1)
    means /= points
    found: list[Floats] = []
    start = 0
    for one in terms:
        size = int(np.prod(one.shape[:3]))
        found.append(means[start : start + size].reshape(*one.shape[:3], count).max(axis=1).mean(axis=1))
        start += size
    return found


def at_the_edge(share: float, points: int) -> tuple[float, float]:
    """The exact 95 % interval (Clopper and Pearson 1934) of a share of 0 or 1 of ``points`` test points.

    None of n points: [0, 1 − (0.025)^(1/n)]; all of them: the mirror image.
    """
    width = float(1 - ((1 - LEVEL) / 2) ** (1 / points))
    return (0.0, width) if share == 0 else (1 - width, 1.0)
