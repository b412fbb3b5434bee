"""Two rows of a leaderboard against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from leaderboards.bootstrap import intervals
from leaderboards.errors import RecordError
from leaderboards.keys import metric_of, sign_of
from leaderboards.pairwise import ALPHA, tests
from leaderboards.points import PER_POINT
from leaderboards.ranking import Row
from leaderboards.results import result_of
from leaderboards.standing import Standing, replicates
from leaderboards.store import read_record

Test = Literal["mcnemar-exact", "mcnemar-clustered", "bootstrap"]


@dataclass(frozen=True)
class Comparison:
    """How two rows differ in one metric.

    ``difference`` is the first row's mean minus the second's, ``low`` to ``high`` its 95 % bootstrap interval
    over seeds and test points. ``p`` is the two-sided p-value of the paired test ``test`` of these models,
    ``p_seeds`` that of the bootstrap, which resamples seeds too; it is None where the test is exact (one seed
    each). All of these are None where outcomes are missing; ``note`` then says which.
    """

    metric: str
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_seeds: float | None = None
    test: Test | None = None
    note: str = ""

    @property
    def better(self) -> Literal["first", "second"] | None:
        """Which row is better, neither p-value being 0.05 or more; None for neither."""
        if self.p is None or max(self.p, self.p_seeds or 0.0) >= ALPHA:
            return None
        return "first" if self.difference * sign_of(self.metric) > 0 else "second"


def compare(row_a: Row, row_b: Row, metric: str | None = None) -> Comparison:
    """Compare two rows of one board in one metric, point by point.

    A share of test points (average, clean, worst-case, unseen) is tested with McNemar's test: exact where
    both rows count every point once, else with test points as clusters (see `leaderboards.mcnemar`). Other
    metrics are tested with the bootstrap of their paired difference. The p-values are of this one
    comparison; ranks correct theirs for the number of pairs.

    Args:
        row_a, row_b: rows whose runs can be read, of one comparison group.
        metric: a metric or its short word; by default what ``row_a`` is ranked by.

    Raises:
        RecordError: rows that cannot be compared, an unknown metric, or one that a row does not have.
    """
    name = metric_of(metric or row_a.ranked_by)
    if row_a.comparison != row_b.comparison or row_a.target_aware != row_b.target_aware:
        raise RecordError(
            f"{row_a.defense} and {row_b.defense} cannot be compared: they differ in data set, sequence, "
            "model, protocol or in whether they are target-aware"
        )
    first, second = row_a.metrics.get(name), row_b.metrics.get(name)
    if first is None or second is None:
        without = row_a if first is None else row_b
        raise RecordError(f"{without.defense} has no {name.replace('_', ' ')}")
    difference = first.mean - second.mean
    standings = [_standing(row) for row in (row_a, row_b)]
    found = tests(standings, name)
    if np.isnan(found.p[0, 1]):
        note = next((one.note for one in standings if one.note), "measured on different points")
        return Comparison(name, difference, note=note)
    terms = [one for standing in standings if (one := standing.terms(name)) is not None]
    drawn = replicates(standings, name, terms)
    low, high = intervals((drawn[0] - drawn[1])[None])[0]
    seeds = None if found.exact[0, 1] else float(found.bootstrap[0, 1])
    p, test = float(found.points[0, 1]), "mcnemar-exact" if found.exact[0, 1] else "mcnemar-clustered"
    if name not in PER_POINT:
        p, test = float(found.bootstrap[0, 1]), "bootstrap"
    return Comparison(name, difference, float(low), float(high), p, seeds, cast(Test, test))


def _standing(row: Row) -> Standing:
    results = []
    for run, directory in zip(row.runs, row.directories, strict=True):
        if not directory:
            return Standing([], note=f"outcomes of {run} not at hand: a record alone")
        results.append(result_of(read_record(Path(directory)), directory))
    standing = Standing(results)
    standing.read()
    return standing
