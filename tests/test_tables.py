"""Leaderboard rows: grouping, ranking, and numbers that survive JSON and CSV."""

import csv
import io
import json
import math
from typing import Any

import pytest
from record_trees import FGSM, PGD, scored, stored
from rich.console import Console

import leaderboards
from leaderboards import Row, rows
from leaderboards.boards import tables
from leaderboards.statistics.summary import Summary, mean, over_seeds, standard_deviation


def standing(ranked: list[Row]) -> list[tuple[str, int | None]]:
    """Defense and rank of each row, in order."""
    return [(row.defense, row.rank) for row in ranked]


def average(row: Row) -> Summary:
    """The row's average robust accuracy."""
    return row.metrics["average_robust_accuracy"]


def test_mean_and_sample_deviation() -> None:
    """By hand, and at the edges."""
    # mean of 1, 2, 6 is 3; squared deviations 4 + 1 + 9 = 14, over n - 1 = 2
    assert mean([1, 2, 6]) == 3.0
    assert standard_deviation([1, 2, 6]) == pytest.approx(math.sqrt(7.0))
    assert standard_deviation([0.3]) is None
    assert over_seeds([0.1, 0.1, 0.1]) == Summary(0.1, 0.0, 3)
    assert over_seeds([0.1, None]) is None
    assert over_seeds([]) is None
    for function in (mean, standard_deviation):
        with pytest.raises(ValueError, match="no values"):
            function([])


def test_seeds_are_one_row() -> None:
    (row,) = rows([scored(score=0.6, seed=1), scored(score=0.5, seed=0), scored(score=0.7, seed=7)])
    assert row.seeds == (0, 1, 7)
    assert average(row) == Summary(pytest.approx(0.6), pytest.approx(0.1), 3)
    assert row.cost["training_seconds"] == Summary(38 / 3, pytest.approx(math.sqrt(43 / 3)), 3)
    (alone,) = rows([scored(metrics={"forgetting": None})])
    assert average(alone) == Summary(0.5, None, 1)
    assert alone.metrics["forgetting"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"beta": 1.0}},
        {"sequence": [PGD, FGSM]},
        {"training": ["fgsm:eps=0.2", "pgd:eps=0.2,steps=10"]},
        {"regime": "joint"},
        {"model": "wide-cnn"},
        {"plan": {"epochs": 3}},
        {"pretrain": 6},
        {"fingerprint": "other"},
        {"protocol": "other"},
        {"defense": "trades"},
    ],
)
def test_what_makes_a_row_of_its_own(change: dict[str, Any]) -> None:
    """Each of these settings splits a row; others do not."""
    first, second = scored(seed=0), scored(**({"seed": 1} | change))
    assert len(rows([first, second])) == 2
    assert len(rows([first, scored(seed=1, workers=3)])) == 1


@pytest.mark.parametrize("newest", [0, 1])
def test_of_one_seed_the_newest_record_counts(newest: int) -> None:
    # The first is half a second later, though it sorts first as text; the order given must not matter.
    times = ["2025-01-01T23:00:00.5+00:00", "2025-01-01T23:00:00Z"]
    pair = [scored(score=0.9, created=times[0]), scored(score=0.1, created=times[1])]
    (row,) = rows(pair if newest else pair[::-1])
    assert row.seeds == (0,)
    assert average(row).mean == 0.9


def test_ranks_follow_the_score_and_ties_share_one() -> None:
    ranked = rows([scored("a", 0.3), scored("b", 0.7), scored("c", 0.7), scored("d", 0.1)])
    assert standing(ranked) == [("b", 1), ("c", 1), ("a", 3), ("d", 4)]


def test_suspect_ranks_below_ok_and_invalid_not_at_all() -> None:
    suspect = [scored("masked", 0.9, verdict="suspect"), scored("even", 0.2, verdict="suspect")]
    ranked = rows([scored("bogus", 1.0, verdict="invalid"), *suspect, scored("a", 0.2), scored("b", 0.4)])
    assert standing(ranked) == [("b", 1), ("a", 2), ("masked", 3), ("even", 4), ("bogus", None)]
    assert ranked[2].flags == ("zero-gradient",)
    assert standing(rows([suspect[1], scored("b", 0.2)])) == [("b", 1), ("even", 2)]


def test_one_suspect_seed_makes_the_row_suspect() -> None:
    seeds = [scored(score=0.9, seed=0), scored(score=0.9, seed=1, verdict="suspect")]
    ranked = rows([*seeds, scored("b", 0.1)])
    assert standing(ranked) == [("b", 1), ("at", 2)]
    assert ranked[1].verdict == "suspect"


def test_a_row_without_a_score_has_no_rank() -> None:
    ranked = rows([scored("none", None), scored("s", 0.2, verdict="suspect"), scored("a", 0.0)])
    assert standing(ranked) == [("a", 1), ("none", None), ("s", 2)]


@pytest.mark.parametrize(
    "apart",
    [
        {"fingerprint": "other"},
        {"sequence": [PGD]},
        {"model": "wide-cnn"},
        {"protocol": "other"},
        {"target_aware": True},
    ],
)
def test_ranked_apart_what_cannot_be_compared(apart: dict[str, Any]) -> None:
    ranked = rows([scored("a", 0.9), scored("b", 0.1, **apart)])
    assert sorted(standing(ranked)) == [("a", 1), ("b", 1)]
    assert next(row for row in ranked if row.defense == "b").target_aware is ("target_aware" in apart)
    # Only target-aware rows stand in the table of the others.
    assert len(tables.to_table(ranked)) == (1 if "target_aware" in apart else 2)


def test_one_content_under_two_names_is_one_comparison() -> None:
    ranked = rows([scored("a", 0.1, dataset="folder:x"), scored("b", 0.9, dataset="folder:y")])
    assert standing(ranked) == [("b", 1), ("a", 2)]
    assert len(tables.to_table(ranked)) == 1


def test_json_and_csv_keep_numbers_exactly() -> None:
    """Though they have no short decimal form."""
    awkward = [0.1 + 0.2, 1 / 3, 0.7123456789012345]
    more = {"params": {"a,b": '"x"'}, "metrics": {"forgetting": None}}
    seeds = [scored(score=score, seed=seed, **more) for seed, score in enumerate(awkward)]
    original = rows([*seeds, scored("b", 0.1 * 3)])
    text = tables.to_csv(original)
    lines = list(csv.DictReader(io.StringIO(text)))
    for row, data, line in zip(original, json.loads(tables.to_json(original)), lines, strict=True):
        numbers = {"mean": average(row).mean, "std": average(row).std, "n": average(row).n}
        assert data["metrics"]["average_robust_accuracy"] == numbers | {"low": None, "high": None}
        assert (data["rank"], data["seeds"], data["params"]) == (row.rank, list(row.seeds), row.params)
        assert float(line["average_robust_accuracy_mean"]) == numbers["mean"]
        assert line["average_robust_accuracy_std"] == ("" if numbers["std"] is None else repr(numbers["std"]))
        assert json.loads(line["params"]) == row.params
        assert json.loads(line["sequence"]) == list(row.sequence)
        assert (int(line["rank"]), json.loads(line["seeds"])) == (row.rank, list(row.seeds))
        assert (data["metrics"].get("forgetting"), line["forgetting_mean"]) == (None, "")
    # Columns do not depend on the rows.
    assert tables.to_csv([]) == text.partition("\n")[0] + "\n"


def shown(ranked: list[Row]) -> list[str]:
    """The printed lines, with runs of spaces collapsed."""
    console = Console(width=300, file=io.StringIO(), record=True)
    for table in tables.to_table(ranked):
        console.print(table)
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_table_shows_percent_rank_and_audit() -> None:
    records = [scored("air", 0.50, seed=0), scored("air", 0.60, seed=1)]
    records += [scored("masked", 0.99, verdict="suspect"), scored("bogus", 1.0, verdict="invalid")]
    lines = shown(rows([*records, scored("mola-grad", 0.7, target_aware=True)]))
    assert "digits (aaaaaaaa) · fgsm eps=0.2 → pgd eps=0.2 · small-cnn · protocol bbbbbbbb" in lines
    # mean 0.55, sample deviation sqrt(2 * 0.05²) = 0.0707
    assert "│ 1 │ air │ continual │ 55.0 ± 7.1 │ 90.0 ± 0.0 │ 2 │ ok │" in lines
    assert "│ 2 │ masked │ continual │ 99.0 │ 90.0 │ 1 │ suspect: zero-gradient │" in lines
    assert "│ – │ bogus │ continual │ 100.0 │ 90.0 │ 1 │ invalid: zero-gradient │" in lines
    assert "│ 1 │ mola-grad (target-aware) │ continual │ 70.0 │ 90.0 │ 1 │ ok │" in lines


def test_like_rows_are_told_apart_by_what_differs() -> None:
    modes = [
        scored("air", 0.6 - 0.1 * k, params={"mode": m, "sigma": 2}) for k, m in enumerate(["[red]", "x"])
    ]
    lines = shown(rows([*modes, scored("at", 0.4, params={"mode": "x"})]))
    cells = [line.split(" │ ")[1] for line in lines if line.startswith("│")]
    # The brackets must come through: rich reads "[red]" in a plain string as markup.
    assert cells == ['air(mode="[red]")', 'air(mode="x")', "at"]


def test_load_gives_a_frame_and_warns_of_damage(tmp_path: Any) -> None:
    stored(tmp_path, scored("a", 0.25), scored("b", 0.75))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "record.json").write_text("{")
    with pytest.warns(UserWarning, match="not a JSON record"):
        frame = leaderboards.load(tmp_path)
    assert frame["defense"].tolist() == ["b", "a"]
    assert frame["average_robust_accuracy_mean"].tolist() == [0.75, 0.25]
    assert list(frame.columns) == tables.to_csv([]).strip().split(",")
