"""Who stands above whom: paired tests of the rows that can be compared, ranks, and intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.bootstrap import intervals, replicates_of
from leaderboards.errors import RecordError
from leaderboards.keys import sign_of
from leaderboards.mcnemar import all_pairs
from leaderboards.points import PER_POINT, Floats, Outcomes, values_of
from leaderboards.results import Result
from leaderboards.statistics import Summary, holm

ALPHA: Final = 0.05
_BATCH: Final = 8_000_000
"""Terms that are bootstrapped at once."""


@dataclass
class Standing:
    """A row on its way: the results of its seeds, and their outcomes once those were read.

    ``note`` says why outcomes are not used; empty where they are.
    """

    results: Sequence[Result]
    outcomes: Outcomes | None = None
    note: str = ""

    def read(self) -> None:
        """Read the outcomes of all seeds, if they can be used together."""
        first = self.results[0]
        if not all(result.directory for result in self.results):
            self.note = "outcomes not at hand: a record alone"
            return
        try:
            found = [result.outcomes() for result in self.results]
        except RecordError as error:
            self.note = str(error)
            return
        shapes = {(clean.shape, robust.shape) for clean, robust in found}
        stacked = len(shapes) == 1 and all(result.layout == first.layout for result in self.results)
        if not stacked or not _fits(first, found[0][1].shape):
            self.note = f"outcomes of {first.id} do not fit its record or those of the other seeds"
            return
        clean, robust = (np.stack([pair[part] for pair in found]) for part in (0, 1))
        self.outcomes = Outcomes(first.layout, clean, robust)

    def terms(self, metric: str) -> Floats | None:
        """The terms of a metric, if the outcomes give the very numbers of the records."""
        if self.outcomes is None:
            return None
        terms = self.outcomes.terms(metric)
        recorded = [result.metrics.get(metric) for result in self.results]
        if terms is None or None in recorded:
            return None
        measured = values_of(terms)
        for result, own, stored in zip(self.results, recorded, measured, strict=True):
            if abs(float(own or 0.0) - stored) > 1e-9:
                self.outcomes = None
                self.note = f"outcomes of {result.id} do not give its record's {metric.replace('_', ' ')}"
                return None
        return terms

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows are tested in pairs where this is equal: blocks of points, the last one ending at n."""
        return () if self.outcomes is None else tuple(self.outcomes.layout.strata(self.outcomes.points))


def _fits(result: Result, shape: Sequence[int]) -> bool:
    layout, (rows, attacks, points) = result.layout, shape
    trained = len(layout.seen) if layout.regime == "continual" else 1
    expected = 1 if layout.regime == "eval" else trained + 1
    counts = layout.counts
    return rows == expected and attacks == len(counts) and all(1 <= count <= points for count in counts)


def p_values(standings: Sequence[Standing], metric: str) -> tuple[Floats, NDArray[np.bool_]]:
    """(G, G) two-sided p-values that two rows are equal in a metric, and which of them are exact.

    NaN where two rows cannot be tested: outcomes missing, or other points. A share of points is tested with
    McNemar's test (`leaderboards.mcnemar`), another metric with the bootstrap of its paired difference Δ:
    p = 2Φ(−|Δ|/se), se the standard deviation of Δ's replicates.
    """
    size = len(standings)
    p, exact = np.full((size, size), np.nan), np.zeros((size, size), dtype=np.bool_)
    terms = [standing.terms(metric) for standing in standings]
    blocks: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(terms):
        if one is not None:
            blocks.setdefault(standings[index].shape, []).append(index)
    for strata, members in blocks.items():
        place = np.ix_(members, members)
        chosen = [one for index in members if (one := terms[index]) is not None]
        if metric in PER_POINT:
            p[place], exact[place] = _proportions([standings[index] for index in members], chosen, metric)
        else:
            seeds = [[result.seed for result in standings[index].results] for index in members]
            p[place] = _differences(chosen, seeds, strata)
    return p, exact


def _proportions(
    standings: Sequence[Standing], terms: Sequence[Floats], metric: str
) -> tuple[Floats, NDArray[np.bool_]]:
    shares, binary = [], []
    for standing, one in zip(standings, terms, strict=True):
        share = one[:, 0, 0].mean(axis=0)
        once = standing.outcomes is not None and standing.outcomes.layout.binary[metric]
        # Where fewer points than n were measured, a term is n/m; shares of evaluations are at most 1.
        shares.append(share / max(1.0, float(one.max())) if once else share)
        binary.append(once and len(one) == 1)
    found = all_pairs(np.stack(shares), np.array(binary))
    return found.p, found.exact


def _differences(terms: Sequence[Floats], seeds: Sequence[Sequence[int]], strata: Sequence[int]) -> Floats:
    from scipy.special import erfc

    values = np.array([values_of(one).mean() for one in terms])
    replicates = _replicates(terms, seeds, strata)
    covariance = np.atleast_2d(np.cov(replicates))
    variance = np.diagonal(covariance)
    spread = np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0.0)
    apart = np.abs(values[:, None] - values[None, :])
    # Without any spread two rows are equal in every point, or differ in all of them alike.
    z = np.divide(apart, np.sqrt(spread), out=np.where(apart > 1e-12, np.inf, 0.0), where=spread > 1e-18)
    return np.asarray(erfc(z / np.sqrt(2)))


def difference_replicates(standings: Sequence[Standing], metric: str) -> Floats:
    """Bootstrap replicates of the first of two rows minus the second; both must have outcomes.

    Raises:
        ValueError: one has none.
    """
    terms = [one for standing in standings if (one := standing.terms(metric)) is not None]
    if len(terms) != 2:
        raise ValueError("two rows with outcomes are needed")
    seeds = [[result.seed for result in standing.results] for standing in standings]
    first, second = _replicates(terms, seeds, standings[0].shape)
    return np.asarray(first - second)


def _replicates(terms: Sequence[Floats], seeds: Sequence[Sequence[int]], strata: Sequence[int]) -> Floats:
    found, begin = [], 0
    while begin < len(terms):
        end, total = begin + 1, terms[begin].size
        while end < len(terms) and total + terms[end].size <= _BATCH:
            total += terms[end].size
            end += 1
        found.append(replicates_of(terms[begin:end], seeds[begin:end], strata))
        begin = end
    return np.concatenate(found)


def ranks(scores: Sequence[float], p: Floats, metric: str) -> list[int]:
    """Ranks of rows in the order of their scores, best first, counted from 1.

    A row's rank is 1 + the number of rows that are better than it: significantly (p < 0.05, adjusted by
    Holm's method over all tested pairs) where a pair was tested, by their scores alone where it was not. It
    never falls below the rank of a row with a better score, so that ties are shown as equal ranks.
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


def with_intervals(
    standings: Sequence[Standing], summaries: Sequence[Mapping[str, Summary | None]], metrics: Sequence[str]
) -> list[dict[str, Summary | None]]:
    """The summaries of rows, with 95 % intervals of ``metrics`` where outcomes are at hand."""
    found = [dict(one) for one in summaries]
    for metric in metrics:
        blocks: dict[tuple[int, ...], list[tuple[int, Floats]]] = {}
        for index, standing in enumerate(standings):
            terms = standing.terms(metric)
            if terms is not None and found[index].get(metric) is not None:
                blocks.setdefault(standing.shape, []).append((index, terms))
        for strata, members in blocks.items():
            seeds = [[result.seed for result in standings[index].results] for index, _ in members]
            ends = intervals(_replicates([terms for _, terms in members], seeds, strata))
            for (index, _), (low, high) in zip(members, ends, strict=True):
                summary = found[index][metric]
                if summary is not None:
                    found[index][metric] = replace(summary, low=float(low), high=float(high))
    return found
