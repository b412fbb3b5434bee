"""A row with the outcomes of its seeds: its terms, its bootstrap replicates and its intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from leaderboards.errors import RecordError
from leaderboards.statistics.bootstrap import at_the_edge, intervals, replicates_of
from leaderboards.statistics.points import Floats, Outcomes, per_point, values_of
from leaderboards.statistics.results import Result
from leaderboards.statistics.summary import Summary
from leaderboards.statistics.under import spoken

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
    _replicates: dict[str, Floats] = field(default_factory=dict)

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
        recorded = [result.value(metric) for result in self.results]
        if terms is None or None in recorded:
            return None
        measured = values_of(terms)
        for result, own, stored in zip(self.results, recorded, measured, strict=True):
            if abs(float(own or 0.0) - stored) > 1e-9:
                self.outcomes = None
                self.note = f"outcomes of {result.id} do not give its record's {spoken(metric)}"
                return None
        return terms

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of the results."""
        return [result.seed for result in self.results]

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


def by_points(standings: Sequence[Standing], terms: Sequence[Floats | None]) -> list[list[int]]:
    """The places of rows that share their points, block by block; rows without terms are left out."""
    blocks: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(terms):
        if one is not None:
            blocks.setdefault(standings[index].shape, []).append(index)
    return list(blocks.values())


def replicates(standings: Sequence[Standing], metric: str, terms: Sequence[Floats]) -> Floats:
    """(rows, replicates) of a metric of rows that share their points, drawn once for each row."""
    missing = [index for index, one in enumerate(standings) if metric not in one._replicates]
    while missing:
        batch, total = [missing.pop(0)], 0
        while missing and (total := total + terms[batch[-1]].size) + terms[missing[0]].size <= _BATCH:
            batch.append(missing.pop(0))
        seeds = [standings[index].seeds for index in batch]
        drawn = replicates_of([terms[index] for index in batch], seeds, standings[batch[0]].shape)
        for index, one in zip(batch, drawn, strict=True):
            standings[index]._replicates[metric] = one
    return np.stack([one._replicates[metric] for one in standings])


def with_intervals(
    standings: Sequence[Standing], summaries: Sequence[Mapping[str, Summary | None]], metrics: Sequence[str]
) -> list[dict[str, Summary | None]]:
    """The summaries of rows, with 95 % intervals of ``metrics`` where outcomes are at hand."""
    found = [dict(one) for one in summaries]
    for metric in metrics:
        terms = [standing.terms(metric) for standing in standings]
        for members in by_points(standings, terms):
            chosen = [one for index in members if (one := terms[index]) is not None]
            ends = intervals(replicates([standings[index] for index in members], metric, chosen))
            for index, (low, high) in zip(members, ends, strict=True):
                summary, outcomes = found[index][metric], standings[index].outcomes
                if summary is None or outcomes is None:
                    continue
                if per_point(metric) and summary.mean in (0.0, 1.0):
                    low, high = at_the_edge(summary.mean, outcomes.layout.measured(metric, outcomes.points))
                found[index][metric] = replace(summary, low=float(low), high=float(high))
    return found
