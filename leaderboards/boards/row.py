"""A row of a leaderboard: one defense under one set of conditions, over its seeds."""

from dataclasses import dataclass, field
from typing import Any

from leaderboards.records.entries import Verdict
from leaderboards.records.trust import Trust
from leaderboards.statistics.results import canonical
from leaderboards.statistics.summary import Summary


@dataclass(frozen=True)
class Row:
    """One defense under one set of conditions, over its seeds.

    ``rank`` counts from 1 within the row's comparison group (None: invalid, or not measured), by the metric
    ``ranked_by``; equal ranks are ties. ``verdict`` is the worst of the seeds', ``flags`` the codes of all of
    them, ``trust`` is ``verified`` where every run is. ``metrics`` and ``cost`` are over seeds; a metric is
    None when a seed lacks it. ``runs`` holds record ids in the order of ``seeds``, ``directories`` where they
    are (empty for a record alone). ``note`` says why there is no interval and no test, where there could be.
    """

    rank: int | None
    defense: str
    params: dict[str, Any]
    regime: str
    target_aware: bool
    verdict: Verdict
    flags: tuple[str, ...]
    dataset: str
    fingerprint: str
    model: str
    sequence: tuple[str, ...]
    training: tuple[str, ...]
    plan: dict[str, Any]
    pretrain: Any
    protocol: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    metrics: dict[str, Summary | None]
    cost: dict[str, Summary | None]
    trust: Trust = "self-reported"
    note: str = ""
    ranked_by: str = "average_robust_accuracy"
    directories: tuple[str, ...] = field(default=(), repr=False)

    @property
    def comparison(self) -> tuple[str, ...]:
        """Rows are comparable when these are equal: data fingerprint, sequence, model, protocol."""
        return (self.fingerprint, canonical(self.sequence), self.model, self.protocol)
