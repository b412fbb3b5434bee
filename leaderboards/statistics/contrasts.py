"""Standard errors over seeds and test points: of a row's mean, and of differences of rows.

A contrast D = Σ_r c_r · metric_r, either a row (c = 1) or a difference (1, −1), has one value D_s per seed if
its rows have the same seeds. Its mean is that of a two-way table with random effects of S seeds and of n
points. An unbiased estimate of its variance is

    V = V_p + (s² − ι²)/S.

V_p is the variance of the bootstrap replicates of the mean, which draw only points. s² is the sample variance
of the D_s. ι² is the part of s² that comes from interactions of seeds with points, which V_p has already:
Σ_s var*(D_s* − mean_s D_s*)/(S − 1) over replicates. A negative s² − ι² counts as 0. Rows with other seeds
are independent: their seed parts add up. With one seed, V is V_p and says nothing about other seeds.

A few seeds estimate their variance poorly, so p-values and intervals use Student's t with Satterthwaite's
degrees of freedom ν = V² / Σ (s²/S)²/(S − 1), and at least the smallest S − 1. The 95 % interval is the
percentile interval over points, stretched about its mean by √(V/V_p) · t_ν/t_∞.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from leaderboards.statistics.mcnemar import two_sided
from leaderboards.statistics.points import Floats

LEVEL: Final = 0.95
_MANY: Final = 1e6
"""From this number on, degrees of freedom count as infinite."""
_DUST: Final = 1e-12

Seeds = tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """One metric of a row.

    Attributes:
        seeds: the names of the seeds.
        values: (S,) the metric of each seed.
        replicates: (S, count) bootstrap replicates of the metric.
    """

    seeds: Seeds
    values: Floats
    replicates: Floats


@dataclass(frozen=True)
class Contrast:
    """A mean over seeds and points, with its error.

    Attributes:
        variance: V of the mean.
        degrees: ν of its standard error; infinite with one seed.
        replicates: (count,) bootstrap replicates of the mean, over points only.
    """

    variance: float
    degrees: float
    replicates: Floats

    def p(self, value: float) -> float:
        """The two-sided p-value of the hypothesis that the mean is zero, for the observed ``value``."""
        error = float(np.sqrt(self.variance))
        t = abs(value) / error if error > _DUST else np.inf if abs(value) > _DUST else 0.0
        return float(two_sided_t(np.array(t), np.array(self.degrees)))

    def interval(self) -> tuple[float, float]:
        """Low and high ends of the 95 % interval."""
        tail = (1 - LEVEL) / 2
        ends = np.quantile(self.replicates, [tail, 1 - tail])
        of_points = float(self.replicates.var(ddof=1))
        if self.degrees >= _MANY and self.variance <= of_points:
            return float(ends[0]), float(ends[1])
        middle = float(self.replicates.mean())
        few = float(stdtrit(min(self.degrees, _MANY), 1 - tail))
        if of_points <= _DUST**2:
            reach = few * float(np.sqrt(self.variance))
            return middle - reach, middle + reach
        stretch = float(np.sqrt(self.variance / of_points)) * few / float(ndtri(1 - tail))
        return middle + stretch * float(ends[0] - middle), middle + stretch * float(ends[1] - middle)


def contrast(parts: Sequence[tuple[float, Drawn]]) -> Contrast:
    """The contrast Σ_r c_r · metric_r of rows with the same draws of points, each given with its c_r."""
    values: dict[Seeds, Floats] = {}
    replicates: dict[Seeds, Floats] = {}
    for factor, one in parts:
        values[one.seeds] = values.get(one.seeds, 0.0) + factor * one.values
        replicates[one.seeds] = replicates.get(one.seeds, 0.0) + factor * one.replicates
    whole: Floats = np.sum([one.mean(axis=0) for one in replicates.values()], axis=0)
    between, tells = 0.0, 0.0
    for seeds, own in values.items():
        count = len(seeds)
        if count > 1:
            single = replicates[seeds] - replicates[seeds].mean(axis=0)
            sample = float(own.var(ddof=1)) / count
            between += sample - float(single.var(axis=1, ddof=1).sum()) / (count - 1) / count
            tells += sample**2 / (count - 1)
    variance = float(whole.var(ddof=1)) + max(between, 0.0)
    least = min((len(seeds) for seeds in values if len(seeds) > 1), default=1) - 1
    return Contrast(variance, max(variance**2 / tells, least) if tells > 0 else np.inf, whole)


def all_differences(rows: Sequence[Drawn]) -> Floats:
    """(G, G) two-sided p-values that two of G rows are equal, as `contrast` gives them for each pair."""
    apart = np.array([row.values.mean() for row in rows])
    points = _spread(_covariance([row.replicates.mean(axis=0) for row in rows]))
    between, tells = np.zeros_like(points), np.zeros_like(points)
    own = np.zeros((len(rows), 2))
    groups: dict[Seeds, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.seeds, []).append(place)
    for seeds, members in groups.items():
        count = len(seeds)
        if count == 1:
            continue
        sample = _covariance([rows[place].values for place in members]) / count
        single = [rows[place].replicates - rows[place].replicates.mean(axis=0) for place in members]
        centred = np.stack([(one - one.mean(axis=1, keepdims=True)).ravel() for one in single])
        twice = centred @ centred.T / (single[0].shape[1] - 1) / (count - 1) / count
        block = np.ix_(members, members)
        between[block] = _spread(sample - twice)
        tells[block] = _spread(sample) ** 2 / (count - 1)
        own[members] = np.stack([np.diagonal(sample - twice), np.diagonal(sample) ** 2 / (count - 1)], axis=1)
    alike = np.array([[one.seeds == other.seeds for other in rows] for one in rows])
    between = np.where(alike, between, own[:, None, 0] + own[None, :, 0])
    tells = np.where(alike, tells, own[:, None, 1] + own[None, :, 1])
    variance = points + np.maximum(between, 0.0)
    distance = np.abs(apart[:, None] - apart[None, :])
    # Without any spread, two rows are equal in every point, or differ equally in all points.
    some = variance > _DUST * max(_DUST, float(variance.max(initial=0.0)))
    root = np.sqrt(np.where(some, variance, 1.0))
    t = np.where(some, distance / root, np.where(distance > _DUST, np.inf, 0.0))
    telling = tells > (_DUST * variance) ** 2
    counts = np.array([len(row.seeds) if len(row.seeds) > 1 else np.inf for row in rows])
    least = np.minimum(counts[:, None], counts[None, :]) - 1
    degrees = np.where(telling, np.maximum(variance**2 / np.where(telling, tells, 1.0), least), np.inf)
    return two_sided_t(t, degrees)


def two_sided_t(t: Floats, degrees: Floats) -> Floats:
    """P(|T| ≥ t) of Student's t; of the normal distribution for infinite degrees of freedom."""
    heavy: Floats = 2 * stdtr(np.minimum(degrees, _MANY), -np.abs(t))
    return np.where(degrees < _MANY, heavy, two_sided(np.abs(t)))


def _covariance(rows: Sequence[Floats]) -> Floats:
    return np.atleast_2d(np.cov(np.stack(rows)))


def _spread(covariance: Floats) -> Floats:
    """The variances of all pairwise differences, from the covariances."""
    variance = np.diagonal(covariance)
    spread: Floats = variance[:, None] + variance[None, :] - 2 * covariance
    return spread
