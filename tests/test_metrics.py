"""Metrics against a 3×3 matrix worked by hand, and their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leaderboards.statistics import metrics

# Rows: pretrained, then stages 1..3. Columns: attacks 1..3. R[0, 1] is the largest of its column, so a
# metric that takes row 0 for a stage shows.
R = np.array(
    [
        [0.95, 0.20, 0.25],
        [0.80, 0.30, 0.35],
        [0.90, 0.85, 0.50],
        [0.70, 0.75, 0.95],
    ]
)
UNSEEN = np.array([[0.0, 0.0], [0.9, 0.9], [0.9, 0.9], [0.40, 0.50]])
CLEAN = np.array([0.99, 0.97, 0.96, 0.91])
# Attack 1 breaks point 0, attack 2 breaks points 1 and 2: means 3/4 and 2/4, so a min of means would say
# 0.5; only point 3 survives both, 1/4.
ROBUST = np.array([[False, True, True, True], [True, False, False, True]])


def test_summary_of_the_matrix_worked_by_hand() -> None:
    """Every metric by name."""
    summary = metrics.summarise(R, CLEAN, regime="continual", R_unseen=UNSEEN, robust=ROBUST)
    assert tuple(summary) == metrics.METRICS
    assert summary == pytest.approx(
        {
            # The last row: (0.70 + 0.75 + 0.95) / 3 = 2.40 / 3
            "average_robust_accuracy": 0.80,
            "clean_accuracy": 0.91,
            "worst_case_accuracy": 0.25,
            # Last row minus diagonal. 1: 0.70 - 0.80 = -0.10; 2: 0.75 - 0.85 = -0.10
            "backward_transfer": -0.10,
            # Best earlier stage. 1: max(0.80, 0.90) - 0.70 = 0.20; 2: max(0.30, 0.85) - 0.75 = 0.10
            "forgetting": 0.15,
            # Before its own stage, minus row 0. 2: 0.30 - 0.20 = 0.10; 3: 0.50 - 0.25 = 0.25
            "forward_transfer": 0.175,
            # (0.40 + 0.50) / 2 = 0.45; 0.80 - 0.45 = 0.35
            "unseen_accuracy": 0.45,
            "unseen_gap": 0.35,
        }
    )


def test_forgetting_is_negative_when_the_last_stage_is_best() -> None:
    # T = 2, attack 1: max(0.4) - 0.6 = -0.2
    assert metrics.forgetting([[0.0, 0.0], [0.4, 0.1], [0.6, 0.5]]) == pytest.approx(-0.2)


def test_no_unseen_attacks_is_null() -> None:
    nothing = np.empty((4, 0))
    assert metrics.unseen_accuracy(nothing) is None
    assert metrics.unseen_gap(R, nothing) is None


def test_worst_case_uses_the_points_all_attacks_share() -> None:
    # Attack 2 was measured on the first two points, and survived on point 1: 1/2, not 1/4.
    robust = np.array([[True, True, False, True], [False, True, False, False]])
    assert metrics.worst_case_accuracy(robust, counts=[4, 2]) == 0.5
    assert metrics.worst_case_accuracy(robust) == 0.25
    assert metrics.worst_case_accuracy(np.ones((0, 4), dtype=bool)) is None


REFERENCE = {("a", 0.1): 0.8, ("a", 0.2): 0.5, ("b", 1.0): 0.6}
WITHOUT_B = {("a", 0.1): 0.4, ("a", 0.2): 0.5, ("b", 1.0): float("nan")}


@pytest.mark.parametrize(
    ("measured", "required", "expected"),
    [
        # Per attack over its own budgets, then over attacks; worst over pairs.
        # a: (0.4/0.8 + 0.5/0.5) / 2 = 0.75; b: 0.3/0.6 = 0.5; average (0.75 + 0.5) / 2 = 0.625; worst 0.5
        ({("a", 0.1): 0.4, ("a", 0.2): 0.5, ("b", 1.0): 0.3}, None, (0.625, 0.5, 3, 3)),
        # The published running count would give a: 2/2, b: 1/3, so (1 + 1/3) / 2.
        (REFERENCE, None, (1.0, 1.0, 3, 3)),
        # a at 0.2000001 is another budget: a: 0.5, b: 0.5.
        ({("a", 0.1): 0.4, ("a", 0.2000001): 0.5, ("b", 1.0): 0.3, ("c", 1.0): 0.0}, None, (0.5, 0.5, 2, 3)),
        (WITHOUT_B, None, (None, None, 2, 3)),
        (WITHOUT_B, {"a"}, (0.75, 0.5, 2, 3)),
        (WITHOUT_B, {"a", "z"}, (None, None, 2, 3)),
        ({}, set(), (None, None, 0, 3)),
    ],
    ids=["by hand", "perfect", "other eps", "missing", "not required", "unknown required", "nothing"],
)
def test_competitiveness_ratio(measured: Any, required: Any, expected: tuple[Any, ...]) -> None:
    """Only exactly equal eps is measured; a required attack that is missing makes the ratio null."""
    found = metrics.competitiveness_ratio(measured, REFERENCE, required=required)
    assert found == tuple(one if one is None else pytest.approx(one) for one in expected)


@pytest.mark.parametrize("regime", ["joint", "meta"])
@pytest.mark.parametrize("attacks", [1, 3])
def test_one_stage_regimes_have_no_transfer_or_forgetting(regime: str, attacks: int) -> None:
    # With one attack R has the shape of a continual run of one stage; with three it has not.
    summary = metrics.summarise(R[[0, 3], :attacks], CLEAN[[0, 3]], regime=regime)
    assert summary["average_robust_accuracy"] == pytest.approx(R[3, :attacks].mean())
    assert summary["clean_accuracy"] == 0.91
    absent = {name for name, value in summary.items() if value is None}
    assert absent == set(metrics.METRICS) - {"average_robust_accuracy", "clean_accuracy"}


def test_one_continual_stage_has_no_transfer_or_forgetting() -> None:
    summary = metrics.summarise([[0.1], [0.8]], [0.9, 0.9], regime="continual")
    assert summary["average_robust_accuracy"] == 0.8
    assert [summary[name] for name in ("backward_transfer", "forgetting", "forward_transfer")] == [None] * 3


def test_a_missing_cell_nulls_only_the_metrics_that_need_it() -> None:
    holed = R.copy()
    holed[2, 0] = np.nan  # attack 1 after stage 2: only forgetting reads it
    summary = metrics.summarise(holed, CLEAN, regime="continual")
    assert summary["forgetting"] is None
    assert summary["backward_transfer"] == pytest.approx(-0.10)
    assert summary["forward_transfer"] == pytest.approx(0.175)


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (metrics.backward_transfer, {"R": R[:, :2]}, "one column a stage"),
        (metrics.summarise, {"R": R, "clean": CLEAN, "regime": "joint"}, "regime 'joint' is one stage"),
        (
            metrics.summarise,
            {"R": R, "clean": CLEAN, "regime": "online"},
            "unknown regime 'online': expected one of continual, joint, meta",
        ),
        (metrics.average_robust_accuracy, {"R": R[:1]}, "T >= 1"),
        (metrics.worst_case_accuracy, {"robust": np.ones((2, 4))}, "boolean"),
        (
            metrics.worst_case_accuracy,
            {"robust": np.ones((1, 4), dtype=bool), "counts": [5]},
            "counts must hold 1 numbers between 0 and 4",
        ),
        (
            metrics.competitiveness_ratio,
            {"accuracies": {}, "reference": {("a", 0.1): 0.0}},
            r"reference accuracy of 'a' at eps 0\.1 must be positive",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(function: Any, given: dict[str, Any], said: str) -> None:
    """Shapes that do not fit, shares instead of outcomes, counts beyond the points, a reference of zero."""
    with pytest.raises(ValueError, match=said):
        function(**given)


def test_input_is_unchanged() -> None:
    """No metric writes to its arguments: where they are read-only, a write raises."""
    arrays = R.copy(), CLEAN.copy(), UNSEEN.copy(), np.array([[False, True], [True, True]])
    for array in arrays:
        array.flags.writeable = False
    matrix, clean, unseen, robust = arrays
    summary = metrics.summarise(
        matrix, clean, regime="continual", R_unseen=unseen, robust=robust, counts=[2, 2]
    )
    assert summary["worst_case_accuracy"] == 0.5
