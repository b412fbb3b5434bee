"""A row of a leaderboard: one defense under one set of conditions, over its seeds."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from leaderboards.records.entries import Verdict
from leaderboards.records.trust import Trust
from leaderboards.statistics.results import canonical
from leaderboards.statistics.summary import Summary

Refusal = Literal["", "outcomes", "weights", "refuted"]
"""Why a row is refused: not at all; bad or missing outcomes; another seed's weights; failed verification."""
WORST_CASE: Final = "worst_case_accuracy"


@dataclass(frozen=True)
class Row:
    """One defense under one set of conditions, over its seeds.

    ``rank`` counts from 1 within the row's comparison group (None: invalid, refused, or not measured), by the
    metric ``ranked_by``; equal ranks are ties. ``verdict`` is the worst verdict of the seeds, ``flags`` holds
    the codes of all seeds, ``trust`` is the lowest trust. ``metrics`` and ``cost`` are over seeds; a metric
    is None if a seed lacks it. ``worst_case_points`` is the number of test points in the worst case: those
    that all attacks share. ``runs`` holds record ids in the order of ``seeds``, ``directories`` their paths
    (empty for a record alone). ``refused`` names the fault of a row that is listed but never ranked; ``note``
    describes it in words, or says why there is no interval and no test.
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
    worst_case_points: int | None = None
    trust: Trust = "self-reported"
    refused: Refusal = ""
    note: str = ""
    ranked_by: str = "average_robust_accuracy"
    directories: tuple[str, ...] = field(default=(), repr=False)

    @property
    def comparison(self) -> tuple[str, ...]:
        """Rows are comparable when these are equal: data fingerprint, sequence, model, protocol."""
        return (self.fingerprint, canonical(self.sequence), self.model, self.protocol)

    @property
    def worst_case_note(self) -> str:
        """The number of points of the worst case, as a note; empty if there is none or it is unknown."""
        shown = self.metrics.get(WORST_CASE) is not None and self.worst_case_points is not None
        return f"worst case on {self.worst_case_points:,} points" if shown else ""

    @property
    def honest(self) -> bool:
        """Whether the row may be marked as best: the audit found nothing and the row is not refused."""
        return self.verdict == "ok" and not self.refused
