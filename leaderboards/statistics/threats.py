"""Worst cases over several attacks: the share of points that survive all of them, point by point.

These are pure functions of stored outcomes: ``robust`` is boolean (A, n), correct clean and after attack *a*,
and attack *a* was measured on the first ``counts[a]`` points. A union is taken over the points that all of
its attacks share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.records.entries import AttackEntry

GROUPINGS: Final = ("norm", "family", "access")


@dataclass(frozen=True)
class WorstCase:
    """``robust`` of ``n`` points survive every attack of the group; ``grouping`` is ``all`` or a property."""

    grouping: str
    group: str
    attacks: list[str]
    robust: int
    n: int

    @property
    def accuracy(self) -> float:
        """robust / n."""
        return self.robust / self.n


def worst_case(robust: NDArray[np.bool_], counts: Sequence[int]) -> tuple[int, int]:
    """How many points survive all of the attacks, and of how many: a union per point, not a min of means.

    Raises:
        ValueError: there are no attacks, or shapes do not fit.
    """
    outcomes = np.asarray(robust)
    if outcomes.ndim != 2 or outcomes.dtype != np.bool_ or not len(outcomes) or len(counts) != len(outcomes):
        raise ValueError(
            f"robust must be boolean (A, n) with A >= 1 and A counts, not {outcomes.dtype} {outcomes.shape} "
            f"with {len(counts)}"
        )
    shared = min(counts)
    if not 1 <= shared <= max(counts) <= outcomes.shape[1]:
        raise ValueError(f"counts must lie between 1 and {outcomes.shape[1]}, not {list(counts)}")
    return int(outcomes[:, :shared].all(axis=0).sum()), shared


def worst_cases(
    attacks: Sequence[AttackEntry], robust: NDArray[np.bool_], counts: Sequence[int]
) -> list[WorstCase]:
    """The union over all attacks, then over those of each norm, family and access, sorted by name.

    A grouping that puts all attacks into one group is left out: it would repeat the union. Attacks without a
    norm form the group ``none``.
    """

    def case(grouping: str, group: str, members: Sequence[int]) -> WorstCase:
        survive, n = worst_case(robust[members], [counts[index] for index in members])
        return WorstCase(grouping, group, [attacks[index].text for index in members], survive, n)

    if not attacks:
        return []
    found = [case("all", "every attack", list(range(len(attacks))))]
    for grouping in GROUPINGS:
        keys = [str(getattr(entry, grouping) or "none") for entry in attacks]
        names = sorted(set(keys))
        for name in names if len(names) > 1 else []:
            members = [index for index, key in enumerate(keys) if key == name]
            found.append(case(grouping, name, members))
    return found
