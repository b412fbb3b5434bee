"""Intervals by bootstrap over seeds and test points.

Hierarchical (Davison and Hinkley 1997, §3.8): a replicate draws the seeds of a row with replacement, and
the test points with replacement, jointly for all seeds, stages and attacks, because the same points stand
in all of them. With draw counts w (Σ_k w_k = n) and v (Σ_s v_s = S), the replicate of a metric is

    metric* = (1/S) Σ_s v_s · mean_j max_m (1/n) Σ_k w_k · terms[s, m, j, k]

(see `leaderboards.statistics.points`).

Points are drawn within the blocks on which the same attacks were measured: how many those are was decided,
not drawn. With one seed only points are drawn. The interval is the 2.5th to the 97.5th percentile of the
replicates. All draws follow from the numbers of points and the seeds, so that the same runs give the same
interval, rows with the same points meet the same draws (their differences are paired), and so do seeds of
the same names.

Two limits of the method: few seeds understate their spread, by √((S−1)/S); and a share of exactly 0 or 1 of
the points never varies, so that it gets the exact binomial interval instead (`at_the_edge`).
"""

import zlib
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
"""Weights that are in memory at once."""
_COUNT: Final = np.uint16
_KEPT: Final = 2**26
"""Bytes of counts that are kept for the next metric; those of more points are drawn anew each time."""


def point_weights(strata: Sequence[int], replicates: int = REPLICATES) -> Iterator[Floats]:
    """Draw counts of every point, (rows, n) at a time until there are ``replicates`` rows.

    ``strata`` are the ascending ends of the blocks of points; each row of a block sums to its length. The
    counts are multinomial: uniform draws of points, counted.
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
    # One metric, row and board after the other has the same points.
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


@lru_cache(maxsize=8)
def seed_weights(seeds: tuple[int, ...], replicates: int = REPLICATES) -> Floats:
    """(replicates, S) draw counts of the seeds; ones where there is a single seed."""
    count = len(seeds)
    random = np.random.default_rng([_KEY, zlib.crc32(repr(list(seeds)).encode())])
    drawn = random.integers(0, count, (replicates, count)) + np.arange(replicates)[:, None] * count
    return (
        np.bincount(drawn.ravel(), minlength=replicates * count).reshape(replicates, count).astype(np.float64)
    )


def replicates_of(
    terms: Sequence[Floats], seeds: Sequence[Sequence[int]], strata: Sequence[int], count: int = REPLICATES
) -> Floats:
    """(rows, count) bootstrap replicates of one metric of several rows that share their points.

    Args:
        terms: for each row (S, M, J, n), as `Outcomes.terms` gives them.
        seeds: for each row the names of its S seeds.
        strata: ascending ends of the blocks of points, the last one being n.
    """
    points = strata[-1]
    flat = np.concatenate([one.reshape(-1, points) for one in terms])
    means = np.concatenate([flat @ weights.T for weights in point_weights(strata, count)], axis=1)
    means /= points
    result = np.empty((len(terms), count))
    start = 0
    for row, (one, names) in enumerate(zip(terms, seeds, strict=True)):
        size = int(np.prod(one.shape[:3]))
        metric = means[start : start + size].reshape(*one.shape[:3], count).max(axis=1).mean(axis=1)
        result[row] = (metric * seed_weights(tuple(names), count).T).sum(axis=0) / len(names)
        start += size
    return result


def at_the_edge(share: float, points: int) -> tuple[float, float]:
    """The exact 95 % interval (Clopper and Pearson 1934) of a share of 0 or 1 of ``points`` test points.

    None of n points: [0, 1 − (0.025)^(1/n)]; all of them: the mirror image.
    """
    width = float(1 - ((1 - LEVEL) / 2) ** (1 / points))
    return (0.0, width) if share == 0 else (1 - width, 1.0)


def intervals(replicates: NDArray[np.float64]) -> Floats:
    """(rows, 2) low and high ends of the 95 % percentile intervals of (rows, replicates)."""
    tail = (1 - LEVEL) / 2
    ends = np.quantile(replicates, [tail, 1 - tail], axis=-1)
    return np.ascontiguousarray(ends.T)
