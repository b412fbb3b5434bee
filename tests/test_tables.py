"""Leaderboard rows: grouping, ranking, and numbers that survive JSON and CSV."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from record_trees import record_tree
from rich.console import Console

import leaderboards
from leaderboards import Record, RecordError, Row, parse_record, rows
from leaderboards.boards import tables
from leaderboards.statistics.summary import Summary, mean, over_seeds, standard_deviation

PGD, FGSM = "pgd:eps=0.2,steps=40", "fgsm:eps=0.2"


def record(
    defense: str = "at",
    score: float | None = 0.5,
    *,
    seed: int = 0,
    verdict: str = "ok",
    created: str = "2025-01-01T00:00:00Z",
    fingerprint: str = "sha256:aaaaaaaaaaaa",
    protocol: str = "sha256:bbbbbbbbbbbb",
    **config: Any,
) -> Record:
    """A record with this score and these settings."""
    base = {"defense": defense, "seed": seed, "sequence": [FGSM, PGD], "plan": {"epochs": 2}, "pretrain": 5}
    base |= {"training": ["fgsm:eps=0.2", "pgd:eps=0.2,steps=7"]}
    tree = record_tree(
        base | config,
        fingerprint=fingerprint,
        verdict=verdict,
        id=f"{defense}-{seed}-{created}",
        created=created,
        protocol=protocol,
        metrics={"average_robust_accuracy": score, "clean_accuracy": 0.9, "forgetting": None},
    )
    return parse_record(tree, "here")


def standing(ranked: list[Row]) -> list[tuple[str, int | None]]:
    """Defense and rank of each row, in order."""
    return [(row.defense, row.rank) for row in ranked]


def average(row: Row) -> Summary:
    """The row's average robust accuracy, which must be there."""
    summary = row.metrics["average_robust_accuracy"]
    assert summary is not None
    return summary


def test_mean_and_sample_deviation() -> None:
    """By hand, and at the edges."""
    # mean of 1, 2, 6 is 3; squared deviations 4 + 1 + 9 = 14, over n - 1 = 2
    assert mean([1, 2, 6]) == 3.0
    assert standard_deviation([1, 2, 6]) == pytest.approx(math.sqrt(7.0))
    assert standard_deviation([0.3]) is None
    assert over_seeds([0.1, 0.1, 0.1]) == Summary(0.1, 0.0, 3)
    assert over_seeds([0.1, None]) is None
    assert over_seeds([]) is None
    with pytest.raises(ValueError, match="no values"):
        mean([])
    with pytest.raises(ValueError, match="no values"):
        standard_deviation([])


def test_seeds_are_one_row() -> None:
    """Seeds are one row."""
    (row,) = rows([record(score=0.6, seed=1), record(score=0.5, seed=0), record(score=0.7, seed=7)])
    assert row.seeds == (0, 1, 7)
    assert average(row).mean == pytest.approx(0.6)
    assert average(row).std == pytest.approx(0.1)
    assert average(row).n == 3
    assert row.metrics["forgetting"] is None
    assert row.cost["training_seconds"] == Summary(38 / 3, pytest.approx(math.sqrt(43 / 3)), 3)


def test_one_seed_has_no_deviation() -> None:
    """One seed has no deviation."""
    (row,) = rows([record(score=0.5)])
    assert average(row) == Summary(0.5, None, 1)


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
    first, second = record(seed=0), record(**({"seed": 1} | change))
    assert len(rows([first, second])) == 2
    assert len(rows([first, record(seed=1, workers=3)])) == 1


@pytest.mark.parametrize("newest", [0, 1])
def test_of_one_seed_the_newest_record_counts(newest: int) -> None:
    """Of one seed the newest record counts."""
    # The first is half a second later, though it sorts first as text; the order given must not matter.
    times = ["2025-01-01T23:00:00.5+00:00", "2025-01-01T23:00:00Z"]
    pair = [record(score=0.9, created=times[0]), record(score=0.1, created=times[1])]
    (row,) = rows(pair if newest else pair[::-1])
    assert row.seeds == (0,)
    assert average(row).mean == 0.9


def test_ranks_follow_the_score_and_ties_share_one() -> None:
    """Ranks follow the score and ties share one."""
    ranked = rows([record("a", 0.3), record("b", 0.7), record("c", 0.7), record("d", 0.1)])
    assert standing(ranked) == [("b", 1), ("c", 1), ("a", 3), ("d", 4)]


def test_suspect_ranks_below_ok_and_invalid_not_at_all() -> None:
    """Suspect ranks below ok and invalid not at all."""
    ranked = rows(
        [
            record("bogus", 1.0, verdict="invalid"),
            record("masked", 0.9, verdict="suspect"),
            record("even", 0.2, verdict="suspect"),
            record("honest", 0.2),
            record("better", 0.4),
        ]
    )
    assert standing(ranked) == [("better", 1), ("honest", 2), ("masked", 3), ("even", 4), ("bogus", None)]
    assert ranked[2].flags == ("zero-gradient",)
    assert standing(rows([record("a", 0.2, verdict="suspect"), record("b", 0.2)])) == [("b", 1), ("a", 2)]


def test_one_suspect_seed_makes_the_row_suspect() -> None:
    """One suspect seed makes the row suspect."""
    seeds = [record(score=0.9, seed=0), record(score=0.9, seed=1, verdict="suspect")]
    ranked = rows([*seeds, record("b", 0.1)])
    assert standing(ranked) == [("b", 1), ("at", 2)]
    assert ranked[1].verdict == "suspect"


def test_a_row_without_a_score_has_no_rank() -> None:
    """A row without a score has no rank."""
    ranked = rows([record("none", None), record("s", 0.2, verdict="suspect"), record("a", 0.0)])
    assert standing(ranked) == [("a", 1), ("none", None), ("s", 2)]


@pytest.mark.parametrize(
    "apart",
    [{"fingerprint": "other"}, {"sequence": [PGD]}, {"model": "wide-cnn"}, {"protocol": "other"}],
)
def test_ranked_apart_what_cannot_be_compared(apart: dict[str, Any]) -> None:
    """Ranked apart what cannot be compared."""
    ranked = rows([record("a", 0.9), record("b", 0.1, **apart)])
    assert sorted(standing(ranked)) == [("a", 1), ("b", 1)]


def test_target_aware_rows_are_ranked_apart() -> None:
    """Target aware rows are ranked apart."""
    ranked = rows([record("mola-grad", 0.9, target_aware=True), record("at", 0.5), record("air", 0.6)])
    assert standing(ranked) == [("air", 1), ("at", 2), ("mola-grad", 1)]
    assert ranked[2].target_aware


def test_one_content_under_two_names_is_one_comparison() -> None:
    """One content under two names is one comparison."""
    ranked = rows([record("a", 0.1, dataset="folder:x"), record("b", 0.9, dataset="folder:y")])
    assert standing(ranked) == [("b", 1), ("a", 2)]
    assert len(tables.to_table(ranked)) == 1


def test_only_one_data_set_can_be_asked_for() -> None:
    """Only one data set can be asked for."""
    both = [record("a"), record("b", dataset="mnist", fingerprint="m")]
    assert standing(rows(both, dataset="mnist")) == [("b", 1)]
    with pytest.raises(RecordError, match=r"^no records on data set 'mnst': .* on digits, mnist$"):
        rows(both, dataset="mnst")
    assert rows([], dataset="mnist") == []


AWKWARD = [0.1 + 0.2, 1 / 3, 0.7123456789012345]


def awkward() -> list[Row]:
    """Rows whose numbers have no short decimal form."""
    seeds = [record(score=score, seed=seed, params={"a,b": '"x"'}) for seed, score in enumerate(AWKWARD)]
    return rows([*seeds, record("b", 0.1 * 3)])


def test_json_keeps_numbers_exactly() -> None:
    """JSON keeps numbers exactly."""
    original = awkward()
    read = json.loads(tables.to_json(original))
    assert len(read) == len(original) == 2
    for row, data in zip(original, read, strict=True):
        summary = average(row)
        assert data["metrics"]["average_robust_accuracy"] == {
            "mean": summary.mean,
            "std": summary.std,
            "n": summary.n,
            "low": None,
            "high": None,
        }
        assert (data["rank"], data["seeds"], data["params"]) == (row.rank, list(row.seeds), row.params)
        assert data["metrics"]["forgetting"] is None


def test_csv_keeps_numbers_exactly() -> None:
    """CSV keeps numbers exactly."""
    original = awkward()
    read = list(csv.DictReader(io.StringIO(tables.to_csv(original))))
    assert len(read) == len(original) == 2
    for row, data in zip(original, read, strict=True):
        summary = average(row)
        std = data["average_robust_accuracy_std"]
        assert float(data["average_robust_accuracy_mean"]) == summary.mean
        assert (float(std) if std else None) == summary.std
        assert json.loads(data["params"]) == row.params
        assert json.loads(data["sequence"]) == list(row.sequence)
        assert (int(data["rank"]), json.loads(data["seeds"])) == (row.rank, list(row.seeds))
        assert data["forgetting_mean"] == ""


def test_csv_columns_do_not_depend_on_the_rows() -> None:
    """CSV columns do not depend on the rows."""
    assert tables.to_csv([]) == tables.to_csv(awkward()).partition("\n")[0] + "\n"


def shown(ranked: list[Row]) -> list[str]:
    """The printed lines, with runs of spaces collapsed."""
    console = Console(width=300, file=io.StringIO(), record=True)
    for table in tables.to_table(ranked):
        console.print(table)
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_table_shows_percent_rank_and_audit() -> None:
    """Table shows percent rank and audit."""
    lines = shown(
        rows(
            [
                record("air", 0.50, seed=0),
                record("air", 0.60, seed=1),
                record("masked", 0.99, verdict="suspect"),
                record("mola-grad", 0.7, target_aware=True),
                record("bogus", 1.0, verdict="invalid"),
            ]
        )
    )
    # mean 0.55, sample deviation sqrt(2 * 0.05²) = 0.0707
    assert "digits (aaaaaaaa) · fgsm eps=0.2 → pgd eps=0.2 · small-cnn · protocol bbbbbbbb" in lines
    assert "│ 1 │ air │ continual │ 55.0 ± 7.1 │ 90.0 ± 0.0 │ 2 │ ok │" in lines
    assert "│ 2 │ masked │ continual │ 99.0 │ 90.0 │ 1 │ suspect: zero-gradient │" in lines
    assert "│ – │ bogus │ continual │ 100.0 │ 90.0 │ 1 │ invalid: zero-gradient │" in lines
    assert "│ 1 │ mola-grad (target-aware) │ continual │ 70.0 │ 90.0 │ 1 │ ok │" in lines


def test_tables_are_one_for_each_comparison() -> None:
    """Tables are one for each comparison."""
    groups = rows([record("a"), record("b"), record("a", protocol="other"), record("a", model="wide-cnn")])
    assert sorted(table.row_count for table in tables.to_table(groups)) == [1, 1, 2]


def test_like_rows_are_told_apart_by_what_differs() -> None:
    """Like rows are told apart by what differs."""
    lines = shown(
        rows(
            [
                record("air", 0.6, params={"mode": "[red]", "sigma": 2}),
                record("air", 0.5, params={"mode": "plain", "sigma": 2}),
                record("at", 0.4, params={"mode": "plain"}),
            ]
        )
    )
    cells = [line.split(" │ ")[1] for line in lines if line.startswith("│")]
    # The brackets must come through: rich reads "[red]" in a plain string as markup.
    assert cells == ['air(mode="[red]")', 'air(mode="plain")', "at"]


def test_load_gives_a_frame_and_warns_of_damage(tmp_path: Path) -> None:
    """Load gives a frame and warns of damage."""
    for name, score in {"a": 0.25, "b": 0.75}.items():
        run = leaderboards.new_run_directory(tmp_path, name)
        leaderboards.write_record(run, record(name, score))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "record.json").write_text("{")
    with pytest.warns(UserWarning, match="not a JSON record"):
        frame = leaderboards.load(tmp_path)
    assert frame["defense"].tolist() == ["b", "a"]
    assert frame["average_robust_accuracy_mean"].tolist() == [0.75, 0.25]
    assert list(frame.columns) == tables.to_csv([]).strip().split(",")
