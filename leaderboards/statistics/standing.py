"""Rows with the outcomes of their seeds: their terms, bootstrap replicates and intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np

from leaderboards.errors import RecordError
from leaderboards.statistics.bootstrap import at_the_edge, replicates_of
from leaderboards.statistics.contrasts import Drawn, contrast
from leaderboards.statistics.points import Floats, Outcomes, per_point, values_of
from leaderboards.statistics.results import Result
from leaderboards.statistics.summary import Summary
from leaderboards.statistics.under import spoken

_BATCH: Final = 8_000_000
"""The most terms to bootstrap at once."""


@dataclass
class Standing:
    """A row under construction: the results of its seeds, and their outcomes as far as they can be used.

    ``note`` says why outcomes are not used; empty if they are used.
    """

    results: Sequence[Result]
    outcomes: Outcomes | None = None
    note: str = ""
    _drawn: dict[str, Drawn] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Sequence[Result]) -> Self:
        """A row with the outcomes of all seeds, if they can be used together."""
        first = results[0]
        if not all(result.directory for result in results):
            return cls(results, note="outcomes not available: a record alone")
        try:
            found = [result.outcomes() for result in results]
        except RecordError as error:
            return cls(results, note=str(error))
        shapes = {(clean.shape, robust.shape) for clean, robust in found}
        stacked = len(shapes) == 1 and all(result.layout == first.layout for result in results)
        if not stacked or not _fits(first, found[0][1].shape):
            note = f"outcomes of {first.id} do not fit its record or those of the other seeds"
            return cls(results, note=note)
        clean, robust = (np.stack([pair[part] for pair in found]) for part in (0, 1))
        return cls(results, Outcomes(first.layout, clean, robust))

    def terms(self, metric: str) -> Floats | None:
        """The terms of a metric, if the outcomes give exactly the numbers of the records."""
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
        """The ends of the blocks of points, the last one n; rows are tested in pairs if these are equal."""
        return () if self.outcomes is None else tuple(self.outcomes.layout.strata(self.outcomes.points))


def _fits(result: Result, shape: Sequence[int]) -> bool:
    layout, (rows, attacks, points) = result.layout, shape
    trained = len(layout.seen) if layout.regime == "continual" else 1
    expected = 1 if layout.regime == "eval" else trained + 1
    counts = layout.counts
    return rows == expected and attacks == len(counts) and all(1 <= count <= points for count in counts)


def by_points(standings: Sequence[Standing], metric: str) -> Iterator[tuple[list[int], list[Floats]]]:
    """The indices and terms of rows, grouped by equal blocks of points; rows without terms are left out."""
    blocks: dict[tuple[int, ...], tuple[list[int], list[Floats]]] = {}
    for index, terms in enumerate([standing.terms(metric) for standing in standings]):
        if terms is not None:
            members, chosen = blocks.setdefault(standings[index].shape, ([], []))
            members.append(index)
            chosen.append(terms)
    yield from blocks.values()


def drawn(standings: Sequence[Standing], metric: str, terms: Sequence[Floats]) -> list[Drawn]:
    """A metric of rows that share their points, with its bootstrap replicates for each row."""
    missing = [index for index, one in enumerate(standings) if metric not in one._drawn]
    while missing:
        batch, total = [missing.pop(0)], 0
        while missing and (total := total + terms[batch[-1]].size) + terms[missing[0]].size <= _BATCH:
            batch.append(missing.pop(0))
        found = replicates_of([terms[index] for index in batch], standings[batch[0]].shape)
        for index, one in zip(batch, found, strict=True):
            row = standings[index]
            row._drawn[metric] = Drawn(tuple(row.seeds), values_of(terms[index]), one)
    return [one._drawn[metric] for one in standings]


def with_intervals(
    standings: Sequence[Standing], summaries: Sequence[Mapping[str, Summary | None]], metrics: Sequence[str]
) -> list[dict[str, Summary | None]]:
    """The summaries of rows, with 95 % intervals of ``metrics`` for rows whose outcomes are available."""
    found = [dict(one) for one in summaries]
    for metric in metrics:
        for members, chosen in by_points(standings, metric):
            found_here = drawn([standings[index] for index in members], metric, chosen)
            for index, own in zip(members, found_here, strict=True):
                low, high = contrast([(1.0, own)]).interval()
                summary, outcomes = found[index][metric], standings[index].outcomes
                if summary is None or outcomes is None:
                    continue
                if per_point(metric) and summary.mean in (0.0, 1.0):
                    low, high = at_the_edge(summary.mean, outcomes.layout.measured(metric, outcomes.points))
                low, high = max(low, 0.0 if per_point(metric) else -1.0), min(high, 1.0)
                found[index][metric] = replace(summary, low=float(low), high=float(high))
    return found
