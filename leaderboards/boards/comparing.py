"""Comparisons of two rows of a leaderboard, or of two defenses over several leaderboards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from leaderboards.boards.row import Row
from leaderboards.errors import RecordError
from leaderboards.records.store import read_record
from leaderboards.statistics.contrasts import Drawn, contrast
from leaderboards.statistics.keys import metric_of, sign_of
from leaderboards.statistics.mcnemar import all_pairs
from leaderboards.statistics.pairwise import ALPHA, tests
from leaderboards.statistics.points import Floats, per_point
from leaderboards.statistics.results import result_of
from leaderboards.statistics.standing import Standing, drawn
from leaderboards.statistics.summary import over_seeds
from leaderboards.statistics.under import attack_of, check_attack, spoken

Test = Literal["mcnemar-exact", "mcnemar-clustered", "bootstrap"]


@dataclass(frozen=True)
class RowComparison:
    """How two rows differ in one metric.

    ``difference`` is the first row's mean minus the second's, ``low`` to ``high`` its 95 % interval over
    seeds and test points (see `leaderboards.statistics.contrasts`). ``p`` is the two-sided p-value of the
    paired test ``test`` on exactly these models; ``p_seeds`` also accounts for the choice of seeds, and is
    None if the test is exact (one seed each). All of these are None if outcomes are missing; ``note`` then
    says which.
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
        """Which row is better if both p-values are below 0.05; otherwise None."""
        if self.p is None or max(self.p, self.p_seeds or 0.0) >= ALPHA:
            return None
        return "first" if self.difference * sign_of(self.metric) > 0 else "second"


def compare(row_a: Row, row_b: Row, metric: str | None = None) -> RowComparison:
    """Compare two rows of one board in one metric, point by point.

    A share of test points (average, clean, worst-case, unseen) is tested with McNemar's test: exact if both
    rows count every point once, otherwise with test points as clusters (see
    `leaderboards.statistics.mcnemar`). Other metrics are tested with a bootstrap of their paired difference.
    The p-values are for this comparison alone; ranks correct theirs for the number of pairs.

    Args:
        row_a, row_b: rows of one comparison group whose runs can be read.
        metric: a metric or its short name; by default the one that ``row_a`` is ranked by.

    Raises:
        RecordError: the rows cannot be compared, the metric is unknown, or a row does not have it.
    """
    name = metric_of(metric or row_a.ranked_by)
    standings = _standings(row_a, row_b)
    difference = _difference((row_a, row_b), standings, name)
    found = tests(standings, name)
    if np.isnan(found.p[0, 1]):
        return RowComparison(name, difference, note=_why(standings))
    low, high = contrast(_parts(standings, name)).interval()
    seeds = None if found.exact[0, 1] else float(found.bootstrap[0, 1])
    p, test = float(found.points[0, 1]), "mcnemar-exact" if found.exact[0, 1] else "mcnemar-clustered"
    if not per_point(name):
        p, test = float(found.bootstrap[0, 1]), "bootstrap"
    return RowComparison(name, difference, float(low), float(high), p, seeds, cast(Test, test))


def compare_over(pairs: Sequence[tuple[Row, Row]], metric: str | None = None) -> RowComparison:
    """Compare two defenses over several boards: the mean over boards of the first's minus the second's.

    The boards have the same test points, and each point counts once: McNemar's test, with points as clusters,
    uses each point's mean difference over boards. The bootstrap draws points for all boards together, and a
    seed that occurs on several boards counts once, with its mean over boards. So what boards share does not
    count as independent evidence (see `leaderboards.statistics.contrasts`). The results do not generalise to
    sequences other than those of the boards. A single pair is compared by :func:`compare`.

    Args:
        pairs: the rows of the two defenses on each board.
        metric: a metric or its short name; by default the one that the first row is ranked by.

    Raises:
        RecordError: there is no pair, the rows cannot be compared, the boards differ in data set or in the
            number of attacked points, the metric is unknown, or a row lacks it.
    """
    if not pairs:
        raise RecordError("no board has both rows")
    name = metric_of(metric or pairs[0][0].ranked_by)
    if len(pairs) == 1:
        return compare(*pairs[0], name)
    boards = [_standings(*pair) for pair in pairs]
    difference = float(
        np.mean([_difference(pair, board, name) for pair, board in zip(pairs, boards, strict=True)])
    )
    points = {
        (pair[0].fingerprint, one.shape) for pair, board in zip(pairs, boards, strict=True) for one in board
    }
    parts: list[tuple[float, Drawn]] = []
    shares = []
    for standings in boards:
        if np.isnan(tests(standings, name).p[0, 1]):
            return RowComparison(name, difference, note=_why(standings))
        parts += _parts(standings, name)
        shares.append([one[:, 0, 0].mean(axis=0) for one in _terms(standings, name)])
    if len(points) > 1:
        raise RecordError("boards that are measured on different points cannot be compared together")
    mean = contrast([(factor / len(pairs), one) for factor, one in parts])
    low, high = mean.interval()
    over_seeds = mean.p(difference)
    if not per_point(name):
        return RowComparison(name, difference, low, high, over_seeds, over_seeds, "bootstrap")
    found = all_pairs(np.mean(shares, axis=0), np.zeros(2, dtype=np.bool_))
    seeds = None if all(len(row.runs) == 1 for pair in pairs for row in pair) else over_seeds
    p = float(found.p[0, 1])
    return RowComparison(name, difference, float(low), float(high), p, seeds, "mcnemar-clustered")


def _standings(row_a: Row, row_b: Row) -> list[Standing]:
    """Two rows with their outcomes.

    Raises:
        RecordError: the rows belong to different boards.
    """
    if row_a.comparison != row_b.comparison or row_a.target_aware != row_b.target_aware:
        raise RecordError(
            f"{row_a.defense} and {row_b.defense} cannot be compared: they differ in data set, sequence, "
            "model, protocol or in whether they are target-aware"
        )
    return [_standing(row) for row in (row_a, row_b)]


def _difference(rows: Sequence[Row], standings: Sequence[Standing], name: str) -> float:
    """The first row's mean minus the second's."""
    means = []
    for row, standing in zip(rows, standings, strict=True):
        summary = row.metrics.get(name)
        if summary is None and attack_of(name) and standing.results:
            check_attack(name, [(one.id, one.attacks) for one in standing.results])
            summary = over_seeds([one.value(name) for one in standing.results])
        if summary is None:
            asked = f": pass under={name!r} to rows" if attack_of(name) and not standing.results else ""
            raise RecordError(f"{row.defense} has no {spoken(name)}{asked}")
        means.append(summary.mean)
    return means[0] - means[1]


def _parts(standings: Sequence[Standing], name: str) -> list[tuple[float, Drawn]]:
    """The terms of the first row, minus those of the second."""
    first, second = drawn(standings, name, _terms(standings, name))
    return [(1.0, first), (-1.0, second)]


def _terms(standings: Sequence[Standing], name: str) -> list[Floats]:
    return [one for standing in standings if (one := standing.terms(name)) is not None]


def _why(standings: Sequence[Standing]) -> str:
    return next((one.note for one in standings if one.note), "measured on different points")


def _standing(row: Row) -> Standing:
    results = []
    for run, directory in zip(row.runs, row.directories, strict=True):
        if not directory:
            return Standing([], note=f"outcomes of {run} not available: a record alone")
        results.append(result_of(read_record(Path(directory)), directory))
    return Standing.of(results)
