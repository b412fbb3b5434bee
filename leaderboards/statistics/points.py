"""Metrics by test point: the contribution of every test point to a metric, from stored outcomes.

All of `METRICS` have one form. With w the weight of each point (1 for the metric itself, a count of draws
in a bootstrap replicate) and n the number of points,

    metric = mean_j max_m (1/n) Σ_k w_k · terms[m, j, k].

A metric that is linear in R has a single m, and then a single j: its terms are the points' contributions.
Only forgetting has a maximum. An attack that was measured on the first m of n points counts n/m times there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.naming import meant
from leaderboards.statistics.under import attack_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PER_POINT: Final = (
    "average_robust_accuracy",
    "clean_accuracy",
    "worst_case_accuracy",
    "unseen_accuracy",
)
"""Metrics that are a share of test points, so that a paired test of proportions applies."""


def per_point(metric: str) -> bool:
    """Whether a metric is a share of test points: those of `PER_POINT`, and accuracy under one attack."""
    return metric in PER_POINT or bool(attack_of(metric))


@dataclass(frozen=True)
class Layout:
    """The layout of a run's outcomes, which the seeds of a row share.

    ``counts[a]`` is the number of points that attack *a* was measured on; ``seen`` and ``unseen`` are the
    columns of the sequence (for ``eval``: of all attacks) and of the attacks outside it; ``attacks`` holds
    the attacks' texts.
    """

    regime: str
    counts: tuple[int, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    attacks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, regime: str, roles: Sequence[str], counts: Sequence[int], attacks: Sequence[str] = ()
    ) -> "Layout":
        """Make a layout from the roles, counts and texts of the attacks, in the record's order."""
        wanted = "eval" if regime == "eval" else "seen"
        seen = tuple(index for index, role in enumerate(roles) if role == wanted)
        unseen = tuple(index for index, role in enumerate(roles) if role == "unseen")
        return cls(regime, tuple(counts), seen, unseen, tuple(attacks))

    def strata(self, points: int) -> list[int]:
        """The ends of the blocks of points on which the same attacks were measured."""
        return sorted({*self.counts, points})

    def measured(self, metric: str, points: int) -> int:
        """The number of points behind a share of points; the smallest if attacks differ in it."""
        if metric == "clean_accuracy":
            return points
        return min(self.counts[column] for column in self._columns(metric))

    def binary(self, metric: str) -> bool:
        """Whether one seed counts each test point once, so that a point is either right or wrong.

        This applies to shares of points, see `per_point`.
        """
        averaged = metric in ("average_robust_accuracy", "unseen_accuracy")
        return not averaged or len(self._columns(metric)) == 1

    def under(self, attack: str) -> int | None:
        """The column of an attack as users write it; None if no attack or several attacks match."""
        found = meant(self.attacks, attack)
        return found[0] if len(found) == 1 else None

    def _columns(self, metric: str) -> Sequence[int]:
        """The columns of the attacks that a share of points averages over."""
        attack = attack_of(metric)
        if attack is not None:
            return meant(self.attacks, attack)
        found = {"average_robust_accuracy": self.seen, "unseen_accuracy": self.unseen}
        return found.get(metric, range(len(self.counts)))


@dataclass(frozen=True)
class Outcomes:
    """Stored outcomes of S seeds: ``clean`` (S, T+1, n), ``robust`` (S, T+1, A, n), both boolean."""

    layout: Layout
    clean: Bools
    robust: Bools

    @property
    def points(self) -> int:
        """n."""
        return int(self.clean.shape[-1])

    def terms(self, metric: str) -> Floats | None:
        """(S, M, J, n) terms of a metric; None if the metric is undefined.

        Raises:
            ValueError: the metric is unknown.
        """
        attack = attack_of(metric)
        if attack is not None:
            column = self.layout.under(attack)
            return None if column is None else self._one(self._mean_of([column]))
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: expected one of {', '.join(METRICS)}")
        if metric == "clean_accuracy":
            return self._one(self.clean[:, -1].astype(np.float64))
        if metric == "worst_case_accuracy":
            return self._one(self._worst_case())
        if metric == "average_robust_accuracy":
            return self._one(self._mean_of(self.layout.seen))
        if metric in ("unseen_accuracy", "unseen_gap"):
            unseen = self._mean_of(self.layout.unseen)
            seen = self._mean_of(self.layout.seen) if metric == "unseen_gap" else None
            if unseen is None or (metric == "unseen_gap" and seen is None):
                return None
            return self._one(unseen if seen is None else seen - unseen)
        return self._continual(metric)

    def _continual(self, metric: str) -> Floats | None:
        """The terms of metrics that compare stages, defined for two or more stages."""
        stages = len(self.layout.seen)
        if self.layout.regime != "continual" or stages < 2:
            return None
        robust = self._scaled(self.layout.seen)
        if metric == "forgetting":
            return robust[:, 1:stages, :-1] - robust[:, -1:, :-1]
        own = np.arange(stages)
        if metric == "backward_transfer":
            change = robust[:, -1, :-1] - robust[:, own[1:], own[:-1]]
        else:
            change = robust[:, own[1:], own[1:]] - robust[:, 0, 1:]
        return self._one(change.mean(axis=1))

    def _mean_of(self, columns: Sequence[int]) -> Floats | None:
        if not columns:
            return None
        if len({self.layout.counts[column] for column in columns} | {self.points}) == 1:
            sums = self.robust[:, -1, list(columns)].sum(axis=1, dtype=np.float64)
            return np.asarray(sums / len(columns))
        return np.asarray(self._scaled(columns, last=True)[:, 0].mean(axis=1))

    def _scaled(self, columns: Sequence[int], *, last: bool = False) -> Floats:
        """(S, T+1 or 1, columns, n), with n/m in place of 1 if only m points were measured."""
        chosen = self.robust[:, slice(-1 if last else 0, None), list(columns)].astype(np.float64)
        counts = np.array([self.layout.counts[column] for column in columns])
        measured = np.arange(self.points) < counts[:, None]
        return np.asarray(chosen * np.where(measured, self.points / counts[:, None], 0.0))

    def _worst_case(self) -> Floats | None:
        if not self.layout.counts:
            return None
        shared = min(self.layout.counts)
        survive = np.asarray(self.robust[:, -1].all(axis=1), dtype=np.float64) * (self.points / shared)
        return np.where(np.arange(self.points) < shared, survive, 0.0)

    @staticmethod
    def _one(values: Floats | None) -> Floats | None:
        return None if values is None else values[:, None, None, :]


def values_of(terms: Floats) -> Floats:
    """(S,) the metric of each seed, computed from its terms."""
    return np.asarray(terms.mean(axis=-1).max(axis=1).mean(axis=1))
