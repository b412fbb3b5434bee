"""Paired tests of all pairs of rows, and the ranks that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.statistics.contrasts import all_differences
from leaderboards.statistics.keys import sign_of
from leaderboards.statistics.mcnemar import all_pairs
from leaderboards.statistics.points import Floats, per_point
from leaderboards.statistics.standing import Standing, by_points, drawn
from leaderboards.statistics.summary import holm

ALPHA: Final = 0.05


@dataclass(frozen=True)
class Tests:
    """(G, G) two-sided p-values that two of G rows are equal in a metric; NaN if two cannot be tested.

    Attributes:
        points: p-values of McNemar's test, which generalises over test points for exactly these models; NaN
            for metrics that are not a share of points.
        bootstrap: p-values of the bootstrap of the paired difference Δ, which also generalises over seeds:
            p = P(|T| ≥ |Δ|/√V), T Student's t with ν degrees of freedom (see
            `leaderboards.statistics.contrasts`). NaN where the first test is exact: one seed per row says
            nothing about other seeds.
        exact: where McNemar's test is the exact one.
    """

    points: Floats
    bootstrap: Floats
    exact: NDArray[np.bool_]

    @property
    def p(self) -> Floats:
        """The larger p-value: a row is better only if neither points nor seeds explain the difference."""
        return np.fmax(self.points, self.bootstrap)


def tests(standings: Sequence[Standing], metric: str) -> Tests:
    """Test all pairs of rows in a metric, except rows without outcomes or on different points."""
    size = len(standings)
    points, bootstrap = (np.full((size, size), np.nan) for _ in range(2))
    exact = np.zeros((size, size), dtype=np.bool_)
    for members, chosen in by_points(standings, metric):
        place = np.ix_(members, members)
        rows = [standings[index] for index in members]
        if per_point(metric):
            points[place], exact[place] = _proportions(rows, chosen, metric)
        if not exact[place].all():
            bootstrap[place] = np.where(exact[place], np.nan, all_differences(drawn(rows, metric, chosen)))
    return Tests(points, bootstrap, exact)


def _proportions(
    standings: Sequence[Standing], terms: Sequence[Floats], metric: str
) -> tuple[Floats, NDArray[np.bool_]]:
    shares, binary = [], []
    for standing, one in zip(standings, terms, strict=True):
        share = one[:, 0, 0].mean(axis=0)
        once = standing.outcomes is not None and standing.outcomes.layout.binary(metric)
        # If only m of n points were measured, a term is n/m; shares of evaluations are at most 1.
        shares.append(share / max(1.0, float(one.max())) if once else share)
        binary.append(once and len(one) == 1)
    found = all_pairs(np.stack(shares), np.array(binary))
    return found.p, found.exact


def ranks(scores: Sequence[float], p: Floats, metric: str) -> list[int]:
    """The ranks of rows, counted from 1; the rows are in the order of their scores, best first.

    A row's rank is 1 + the number of rows that are better than it: significantly (p < 0.05, adjusted by
    Holm's method over all tested pairs) if a pair was tested, or by their scores if it was not. It is never
    smaller than the rank of a row with a better score, so that ties are shown as equal ranks.
    """
    size = len(scores)
    upper = np.triu_indices(size, 1)
    tested = ~np.isnan(p[upper])
    adjusted = np.full(len(upper[0]), np.nan)
    adjusted[tested] = holm(p[upper][tested])
    better = np.zeros(size, dtype=np.int64)
    signed = np.array(scores) * sign_of(metric)
    ahead = signed[upper[0]] > signed[upper[1]]
    wins = ahead & np.where(tested, np.nan_to_num(adjusted, nan=1.0) < ALPHA, True)
    np.add.at(better, upper[1][wins], 1)
    return [int(rank) for rank in np.maximum.accumulate(1 + better)] if size else []
