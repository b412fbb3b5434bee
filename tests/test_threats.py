"""Several threats together: unions over points, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from leaderboards.records.entries import AttackEntry
from leaderboards.statistics.threats import worst_case, worst_cases

ROBUST = np.array(
    [
        [1, 1, 1, 0, 0, 1],
        [1, 0, 1, 1, 0, 1],
        [0, 1, 1, 1, 1, 0],
    ],
    dtype=bool,
)


def entry(name: str, family: str, norm: str | None, access: str) -> AttackEntry:
    """An attack of a record."""
    return AttackEntry.model_validate(
        {
            "text": f"{name}:eps=0.1",
            "name": name,
            "family": family,
            "norm": norm,
            "eps": 0.1,
            "access": access,
            "kind": "budgeted",
            "role": "seen",
            "training": None,
        }
    )


ENTRIES = [
    entry("pgd", "projected-gradient", "linf", "white-box"),
    entry("square", "query", "linf", "black-box"),
    entry("spin", "spatial", None, "black-box"),
]


def test_a_union_is_per_point() -> None:
    """Only point 2 survives all three, though each attack leaves four; over the points that all saw."""
    assert worst_case(ROBUST, [6, 6, 6]) == (1, 6)
    assert worst_case(ROBUST[:2], [6, 6]) == (3, 6)
    assert worst_case(ROBUST, [6, 2, 6]) == (0, 2)
    assert worst_case(ROBUST[:1], [4]) == (3, 4)


@pytest.mark.parametrize(
    ("robust", "counts"),
    [
        (ROBUST[:0], []),
        (ROBUST, [6, 6]),
        (ROBUST, [6, 6, 7]),
        (ROBUST, [6, 0, 6]),
        (ROBUST.astype(int), [6] * 3),
    ],
)
def test_what_does_not_fit_is_refused(robust: np.ndarray, counts: list[int]) -> None:
    """No attacks, or counts beyond the points."""
    with pytest.raises(ValueError, match=r"must"):
        worst_case(robust, counts)


def test_groups() -> None:
    """Everything, then by norm, family and access; the union of a group is at most its weakest member."""
    cases = {(case.grouping, case.group): case for case in worst_cases(ENTRIES, ROBUST, [6, 6, 4])}
    assert [(key, case.robust, case.n) for key, case in cases.items()] == [
        (("all", "every attack"), 1, 4),
        (("norm", "linf"), 3, 6),
        (("norm", "none"), 3, 4),
        (("family", "projected-gradient"), 4, 6),
        (("family", "query"), 4, 6),
        (("family", "spatial"), 3, 4),
        (("access", "black-box"), 2, 4),
        (("access", "white-box"), 4, 6),
    ]
    assert cases["norm", "linf"].attacks == ["pgd:eps=0.1", "square:eps=0.1"]
    assert cases["norm", "linf"].accuracy == 0.5


def test_a_grouping_that_parts_nothing_is_left_out() -> None:
    """One attack is its own union."""
    assert [case.grouping for case in worst_cases(ENTRIES[:1], ROBUST[:1], [6])] == ["all"]
    assert worst_cases([], ROBUST[:0], []) == []
