"""Metrics against a 3×3 matrix worked by hand, and their edges."""

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


def test_average_robust_accuracy() -> None:
    """The mean of the last row."""
    # (0.70 + 0.75 + 0.95) / 3 = 2.40 / 3
    assert metrics.average_robust_accuracy(R) == pytest.approx(0.80)


def test_backward_transfer() -> None:
    """Last row minus the diagonal, without the last attack."""
    # attack 1: 0.70 - 0.80 = -0.10; attack 2: 0.75 - 0.85 = -0.10
    assert metrics.backward_transfer(R) == pytest.approx(-0.10)


def test_forgetting_takes_the_best_earlier_stage() -> None:
    """Forgetting takes the best earlier stage."""
    # attack 1: max(0.80, 0.90) - 0.70 = 0.20; attack 2: max(0.30, 0.85) - 0.75 = 0.10
    assert metrics.forgetting(R) == pytest.approx(0.15)


def test_forgetting_is_negative_when_the_last_stage_is_best() -> None:
    """Forgetting is negative when the last stage is best."""
    # T = 2, attack 1: max(0.4) - 0.6 = -0.2
    assert metrics.forgetting([[0.0, 0.0], [0.4, 0.1], [0.6, 0.5]]) == pytest.approx(-0.2)


def test_forward_transfer_is_against_the_pretrained_row() -> None:
    """Accuracy just before an attack's own stage, minus row 0."""
    # attack 2: R[1, 2] - R[0, 2] = 0.30 - 0.20 = 0.10; attack 3: R[2, 3] - R[0, 3] = 0.50 - 0.25 = 0.25
    assert metrics.forward_transfer(R) == pytest.approx(0.175)


def test_unseen_accuracy_and_gap() -> None:
    """The unseen mean, and seen minus unseen."""
    # (0.40 + 0.50) / 2 = 0.45; 0.80 - 0.45 = 0.35
    assert metrics.unseen_accuracy(UNSEEN) == pytest.approx(0.45)
    assert metrics.unseen_gap(R, UNSEEN) == pytest.approx(0.35)


def test_no_unseen_attacks_is_null() -> None:
    """No unseen attacks is null."""
    nothing = np.empty((4, 0))
    assert metrics.unseen_accuracy(nothing) is None
    assert metrics.unseen_gap(R, nothing) is None


def test_clean_accuracy_is_the_last_stage() -> None:
    """Clean accuracy is read after the last stage."""
    assert metrics.clean_accuracy(CLEAN) == 0.91


def test_worst_case_is_a_union_over_points() -> None:
    """A point counts only if it survives every attack."""
    # Attack 1 breaks point 0, attack 2 breaks points 1 and 2: means 3/4 and 2/4, so a min of means would
    # say 0.5; only point 3 survives both, 1/4.
    robust = np.array([[False, True, True, True], [True, False, False, True]])
    assert metrics.worst_case_accuracy(robust) == 0.25


def test_worst_case_uses_the_points_all_attacks_share() -> None:
    """Worst case uses the points all attacks share."""
    # Attack 2 was measured on the first two points, and survived on point 1: 1/2, not 1/4.
    robust = np.array([[True, True, False, True], [False, True, False, False]])
    assert metrics.worst_case_accuracy(robust, counts=[4, 2]) == 0.5
    assert metrics.worst_case_accuracy(robust) == 0.25


def test_worst_case_refuses_what_it_cannot_mean() -> None:
    """Shares instead of outcomes, and counts beyond the points, are errors."""
    with pytest.raises(ValueError, match="boolean"):
        metrics.worst_case_accuracy(np.ones((2, 4)))
    with pytest.raises(ValueError, match="counts must hold 1 numbers between 0 and 4"):
        metrics.worst_case_accuracy(np.ones((1, 4), dtype=bool), counts=[5])
    assert metrics.worst_case_accuracy(np.ones((0, 4), dtype=bool)) is None


REFERENCE = {("a", 0.1): 0.8, ("a", 0.2): 0.5, ("b", 1.0): 0.6}


def test_competitiveness_ratio() -> None:
    """Per attack over its own budgets, then over attacks; worst over pairs."""
    # a: (0.4/0.8 + 0.5/0.5) / 2 = 0.75; b: 0.3/0.6 = 0.5; average (0.75 + 0.5) / 2 = 0.625; worst 0.5
    measured = {("a", 0.1): 0.4, ("a", 0.2): 0.5, ("b", 1.0): 0.3}
    assert metrics.competitiveness_ratio(measured, REFERENCE) == (
        pytest.approx(0.625),
        pytest.approx(0.5),
        3,
        3,
    )


def test_a_perfect_model_scores_one() -> None:
    """Equal to the reference everywhere is exactly 1."""
    # The published running count would give a: 2/2, b: 1/3, so (1 + 1/3) / 2.
    assert metrics.competitiveness_ratio(REFERENCE, REFERENCE) == (1.0, 1.0, 3, 3)


def test_only_exactly_equal_eps_is_measured() -> None:
    """Only exactly equal eps is measured."""
    # a at 0.2000001 is another budget: a: 0.5, b: 0.5.
    measured = {("a", 0.1): 0.4, ("a", 0.2000001): 0.5, ("b", 1.0): 0.3, ("c", 1.0): 0.0}
    average, worst, terms, total = metrics.competitiveness_ratio(measured, REFERENCE)
    assert (average, worst) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (terms, total) == (2, 3)


def test_a_missing_required_attack_makes_the_ratio_null() -> None:
    """A missing required attack makes the ratio null."""
    measured = {("a", 0.1): 0.4, ("a", 0.2): 0.5, ("b", 1.0): float("nan")}
    assert metrics.competitiveness_ratio(measured, REFERENCE) == (None, None, 2, 3)
    average, worst, *_ = metrics.competitiveness_ratio(measured, REFERENCE, required={"a"})
    assert (average, worst) == (pytest.approx(0.75), pytest.approx(0.5))
    assert metrics.competitiveness_ratio(measured, REFERENCE, required={"a", "z"})[:2] == (None, None)
    assert metrics.competitiveness_ratio({}, REFERENCE, required=set()) == (None, None, 0, 3)


def test_a_reference_of_zero_is_refused() -> None:
    """A reference of zero is refused."""
    with pytest.raises(ValueError, match=r"reference accuracy of 'a' at eps 0\.1 must be positive"):
        metrics.competitiveness_ratio({}, {("a", 0.1): 0.0})


def test_summarise_continual() -> None:
    """Every metric by name, on the hand-worked matrix."""
    robust = np.array([[False, True, True, True], [True, False, False, True]])
    summary = metrics.summarise(R, CLEAN, regime="continual", R_unseen=UNSEEN, robust=robust)
    assert tuple(summary) == metrics.METRICS
    assert summary == pytest.approx(
        {
            "average_robust_accuracy": 0.80,
            "clean_accuracy": 0.91,
            "worst_case_accuracy": 0.25,
            "backward_transfer": -0.10,
            "forgetting": 0.15,
            "forward_transfer": 0.175,
            "unseen_accuracy": 0.45,
            "unseen_gap": 0.35,
        }
    )


@pytest.mark.parametrize("regime", ["joint", "meta"])
@pytest.mark.parametrize("attacks", [1, 3])
def test_one_stage_regimes_have_no_transfer_or_forgetting(regime: str, attacks: int) -> None:
    """One stage regimes have no transfer or forgetting."""
    # With one attack R has the shape of a continual run of one stage; with three it has not.
    summary = metrics.summarise(R[[0, 3], :attacks], CLEAN[[0, 3]], regime=regime)
    assert summary["average_robust_accuracy"] == pytest.approx(R[3, :attacks].mean())
    assert summary["clean_accuracy"] == 0.91
    absent = {name for name, value in summary.items() if value is None}
    assert absent == set(metrics.METRICS) - {"average_robust_accuracy", "clean_accuracy"}


def test_one_continual_stage_has_no_transfer_or_forgetting() -> None:
    """One continual stage has no transfer or forgetting."""
    summary = metrics.summarise([[0.1], [0.8]], [0.9, 0.9], regime="continual")
    assert summary["average_robust_accuracy"] == 0.8
    assert [summary[name] for name in ("backward_transfer", "forgetting", "forward_transfer")] == [None] * 3


def test_a_missing_cell_nulls_only_the_metrics_that_need_it() -> None:
    """A missing cell nulls only the metrics that need it."""
    holed = R.copy()
    holed[2, 0] = np.nan  # attack 1 after stage 2: only forgetting reads it
    summary = metrics.summarise(holed, CLEAN, regime="continual")
    assert summary["forgetting"] is None
    assert summary["backward_transfer"] == pytest.approx(-0.10)
    assert summary["forward_transfer"] == pytest.approx(0.175)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """Shapes that do not fit are refused."""
    with pytest.raises(ValueError, match="one column a stage"):
        metrics.backward_transfer(R[:, :2])
    with pytest.raises(ValueError, match="regime 'joint' is one stage"):
        metrics.summarise(R, CLEAN, regime="joint")
    with pytest.raises(ValueError, match="unknown regime 'online': expected one of continual, joint, meta"):
        metrics.summarise(R, CLEAN, regime="online")
    with pytest.raises(ValueError, match="T >= 1"):
        metrics.average_robust_accuracy(R[:1])


def test_input_is_unchanged() -> None:
    """No metric writes to its arguments."""
    # Once on plain arrays, compared; once on read-only ones, where any write raises.
    matrix, unseen, clean = R.copy(), UNSEEN.copy(), CLEAN.copy()
    robust = np.array([[False, True], [True, True]])
    before = [array.copy() for array in (matrix, unseen, clean, robust)]
    first = metrics.summarise(
        matrix, clean, regime="continual", R_unseen=unseen, robust=robust, counts=[2, 1]
    )
    for array, original in zip((matrix, unseen, clean, robust), before, strict=True):
        np.testing.assert_array_equal(array, original)
        array.flags.writeable = False
    again = metrics.summarise(
        matrix, clean, regime="continual", R_unseen=unseen, robust=robust, counts=[2, 1]
    )
    assert again == first
