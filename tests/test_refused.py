"""Runs that are listed and not ranked, boards of several directories, and a worst case that says of what."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advbench.cli.main import invoke
from advbench.external.evaluate_model import evaluate_model
from advbench.runs.saved import Run
from leaderboards import (
    Record,
    Row,
    find_records,
    find_results,
    load,
    read_outcomes,
    rows,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    write_outcomes,
    write_record,
)
from leaderboards.boards.tables import to_text

Captured = pytest.CaptureFixture[str]
Save = Callable[..., Path]


@pytest.fixture
def save(make_record: Callable[..., Record], tmp_path: Path) -> Save:
    """Writes a run of ``seed`` with outcomes that give its record, drawn by ``draw`` or by ``seed``."""

    def write(
        defense: str,
        seed: int = 0,
        *,
        place: str = "runs",
        draw: int | None = None,
        outcomes: bool = True,
        sums: str = "",
        **more: Any,
    ) -> Path:
        record = make_record(defense, seed=seed, **more)
        path = tmp_path / place / record.id
        path.mkdir(parents=True)
        write_record(path, record)
        if sums:
            (path / "SHA256SUMS").write_text(f"{sums * 64}  stages/2.safetensors\n")
        if outcomes:
            rng = np.random.default_rng([seed if draw is None else draw, *defense.encode()])
            clean = np.zeros((3, 100), dtype=bool)
            clean[:, : record.cells[0].robust] = True
            robust = np.zeros((3, 3, 100), dtype=bool)
            texts = [entry.text for entry in record.attacks]
            for cell in record.cells:
                if cell.attack in texts:
                    kept = rng.permutation(cell.clean_correct)[: cell.robust]
                    robust[cell.stage, texts.index(cell.attack), kept] = True
            write_outcomes(path / "outcomes.npz", clean, robust)
        return path

    return write


def board(place: Path) -> list[Row]:
    """The rows of a runs directory."""
    return rows(find_results(place)[0])


def brief(found: list[Row]) -> list[tuple[str, int | None, bool, tuple[int, ...]]]:
    """Defense, rank, whether it is refused, and seeds."""
    return [(row.defense, row.rank, bool(row.refused), row.seeds) for row in found]


def test_a_lone_record_is_listed_and_never_ranked(save: Save, tmp_path: Path, capsys: Captured) -> None:
    """Though its numbers are the best; every format says why, and none marks it as the best."""
    save("honest", robust=60)
    save("forged", robust=95, outcomes=False)
    found = board(tmp_path / "runs")
    assert brief(found) == [("honest", 1, False, (0,)), ("forged", None, True, (0,))]
    assert "cannot read outcomes" in found[1].note
    assert re.search(r"forged\W+\w*\W+\*\*", to_markdown(found)) is None
    command = ["leaderboard", "--runs-dir", str(tmp_path / "runs")]
    for more in ([], ["--format", "csv"], ["--format", "markdown"], ["--rank-by", "clean"]):
        assert invoke([*command, *more]) == 0
        out, err = capsys.readouterr()
        assert "forged" in out
        assert "cannot read outcomes" in " ".join(out.replace("\\", "").split())
        assert err == ""
    assert invoke([*command, "--format", "json"]) == 0
    assert [row["rank"] for row in json.loads(capsys.readouterr().out)] == [1, None]


def test_nothing_is_built_on_a_record_without_outcomes(save: Save, tmp_path: Path) -> None:
    """The best known accuracies of advbench reference are of runs that have them."""
    save("honest")
    save("forged", outcomes=False)
    records, (problem,) = find_records(tmp_path / "runs", measured=True)
    assert [record.config["defense"] for record in records] == ["honest"]
    assert "forged-continual-s0: not counted: cannot read outcomes" in problem
    assert len(find_records(tmp_path / "runs")[0]) == 2


def test_a_record_without_outcomes_does_not_lift_a_row(save: Save, tmp_path: Path) -> None:
    """It would be one more seed of an honest one: the mean and the rank are without it."""
    for seed in range(2):
        save("honest", seed)
    alone = board(tmp_path / "runs")
    save("honest", 2, robust=95, outcomes=False)
    found = board(tmp_path / "runs")
    assert brief(found) == [("honest", 1, False, (0, 1)), ("honest", None, True, (2,))]
    assert found[0].metrics == alone[0].metrics


def test_outcomes_of_another_run_do_not_rank(save: Save, tmp_path: Path) -> None:
    """Copied beside a record that they do not give."""
    honest = save("honest")
    forged = save("forged", robust=95, outcomes=False)
    shutil.copy(honest / "outcomes.npz", forged)
    found = board(tmp_path / "runs")
    assert brief(found) == [("honest", 1, False, (0,)), ("forged", None, True, (0,))]
    assert "do not give its record's" in found[1].note


@pytest.mark.parametrize("known", ["digest", "outcomes"])
def test_one_model_is_no_three_seeds(known: str, save: Save, tmp_path: Path, capsys: Captured) -> None:
    """By the digest of the final weights, or where an attack leaves and fools the very same points."""
    for seed in range(3):
        save("copied", seed, sums="a" if known == "digest" else "", draw=None if known == "digest" else 7)
        save("honest", seed, sums=str(seed))
    found = board(tmp_path / "runs")
    assert brief(found) == [
        ("honest", 1, False, (0, 1, 2)),
        *(("copied", None, True, (seed,)) for seed in range(3)),
    ]
    assert invoke(["leaderboard", "--runs-dir", str(tmp_path / "runs"), "--format", "json"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "not ranked" in line]
    assert warned == [f"warning: not ranked: {row.note}" for row in found[1:]]
    assert (
        "run copied-continual-s0 of seed 0 and run copied-continual-s1 of seed 1 are one model"
        in found[1].note
    )


def test_few_survivors_do_not_make_two_seeds_one(save: Save, tmp_path: Path) -> None:
    """An attack that leaves next to nothing says nothing of the weights."""
    for seed in range(2):
        save("weak", seed, robust=20, draw=0)
    assert brief(board(tmp_path / "runs")) == [("weak", 1, False, (0, 1))]


def test_a_model_evaluated_under_several_seeds_counts_once(small_run: Run, tmp_path: Path) -> None:
    """The seeds are the evaluation's; the model is one."""
    for seed in range(3):
        evaluate_model(
            small_run.model,
            attacks="fgsm",
            points=60,
            seed=seed,
            threads=1,
            runs_dir=tmp_path,
            surrogate="none",
        )
    found = board(tmp_path)
    assert [(row.rank, bool(row.refused), row.seeds) for row in found] == [
        (1, False, (0,)),
        (None, True, (1,)),
        (None, True, (2,)),
    ]
    assert "it counts once" in found[1].note
    assert {row.refused for row in found[1:]} == {"weights"}


def test_several_directories_are_read_together(save: Save, tmp_path: Path, capsys: Captured) -> None:
    """Each once, however often it is named; a missing one is an error."""
    save("one", place="a")
    save("two", place="b")
    both = ["--runs-dir", str(tmp_path / "a"), "--runs-dir", str(tmp_path / "b")]
    assert (
        invoke(["leaderboard", *both, "--runs-dir", str(tmp_path / "a" / "..") + "/a", "--format", "csv"])
        == 0
    )
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sorted((line["defense"], line["seeds"]) for line in lines) == [("one", "[0]"), ("two", "[0]")]
    assert sorted(load(tmp_path / "a", tmp_path / "b")["defense"]) == ["one", "two"]
    assert invoke(["runs", *both, "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["id"], entry["trust"]) for entry in listed] == [
        ("one-continual-s0", "self-reported"),
        ("two-continual-s0", "self-reported"),
    ]
    assert invoke(["runs", "check", *both]) == 0
    assert "2 runs checked" in capsys.readouterr().out
    assert invoke(["runs", *both, "check", "two-continual-s0"]) == 0
    assert "1 run checked" in capsys.readouterr().out
    assert invoke(["plot", "tradeoff", *both, "--out", str(tmp_path / "both.svg")]) == 0
    capsys.readouterr()
    assert "two" in (tmp_path / "both.svg").read_text()
    assert invoke(["leaderboard", *both, "--runs-dir", str(tmp_path / "c")]) == 2
    assert capsys.readouterr().err.startswith("error: no runs directory at")


def test_the_site_is_a_runs_directory_that_ranks(save: Save, tmp_path: Path, capsys: Captured) -> None:
    """It keeps outcomes beside records, and says which rows are not ranked and which badge they have."""
    first = save("honest")
    save("forged", robust=95, outcomes=False)
    out = tmp_path / "site"
    assert (
        invoke(["leaderboard", "--runs-dir", str(tmp_path / "runs"), "--format", "html", "--out", str(out)])
        == 0
    )
    capsys.readouterr()
    assert [(row.defense, row.rank) for row in board(out / "runs")] == [("honest", 1), ("forged", None)]
    copied = next((out / "runs").glob("honest*/outcomes.npz"))
    assert np.array_equal(read_outcomes(copied)[1], read_outcomes(first / "outcomes.npz")[1])
    page = (out / "index.html").read_text()
    assert "not ranked" in page
    assert "Worst case on 100 points" in page
    style = (out / "assets" / "site.css").read_text()
    looks = [
        re.search(rf"\.chip\.{name} \{{(.*?)\}}", style, re.DOTALL) for name in ("retrained", "re-evaluated")
    ]
    assert all(looks)
    assert len({look[1] for look in looks if look}) == 2


def test_the_worst_case_says_of_how_many_points(
    make_record: Callable[..., Record], tmp_path: Path, capsys: Captured
) -> None:
    """It may be above an attack that met more: 70.0 % of 10 points beside 60 % of 100."""
    tree = make_record().dump()
    for cell in tree["cells"]:
        if cell["attack"].startswith("fgsm"):
            cell["n"], cell["clean_correct"], cell["robust"] = 10, 9, 7
    tree["metrics"]["worst_case_accuracy"] = 0.7
    record = Record.model_validate_json(json.dumps(tree))
    assert record.worst_case_points() == 10
    found = rows([record])
    assert found[0].worst_case_points == 10
    for text in (to_text(found), to_markdown(found), to_latex(found)):
        assert "worst case on 10 points" in text
    assert json.loads(to_json(found))[0]["worst_case_points"] == 10
    assert next(csv.DictReader(io.StringIO(to_csv(found))))["worst_case_points"] == "10"
    path = tmp_path / "run"
    path.mkdir()
    write_record(path, record)
    assert invoke(["show", str(path)]) == 0
    assert re.search(r"worst case accuracy +70\.0 % on 10 points", capsys.readouterr().out)
