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
        robust: int = 60,
    ) -> Path:
        record = make_record(defense, seed=seed, robust=robust)
        path = tmp_path / place / record.id
        path.mkdir(parents=True)
        write_record(path, record)
        if sums:
            (path / "SHA256SUMS").write_text(f"{sums * 64}  stages/2.safetensors\n")
        if outcomes:
            rng = np.random.default_rng([seed if draw is None else draw, *defense.encode()])
            clean, kept = np.zeros((3, 100), dtype=bool), np.zeros((3, 3, 100), dtype=bool)
            clean[:, : record.cells[0].robust] = True
            texts = [entry.text for entry in record.attacks]
            for cell in record.cells:
                if cell.attack in texts:
                    points = rng.permutation(cell.clean_correct)[: cell.robust]
                    kept[cell.stage, texts.index(cell.attack), points] = True
            write_outcomes(path / "outcomes.npz", clean, kept)
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
    save("honest")
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
    # Nothing is built on it: the best known accuracies of advbench reference are of runs with outcomes.
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


@pytest.mark.usefixtures("short_probes")
def test_a_model_evaluated_under_several_seeds_counts_once(network: Any, tmp_path: Path) -> None:
    """The seeds are the evaluation's; the model is one."""
    settings: dict[str, Any] = {"points": 20, "threads": 1, "surrogate": "none", "runs_dir": tmp_path}
    for seed in range(3):
        evaluate_model(network(), attacks="fgsm", seed=seed, **settings)
    found = board(tmp_path)
    assert [row[1:] for row in brief(found)] == [(1, False, (0,)), (None, True, (1,)), (None, True, (2,))]
    assert "it counts once" in found[1].note
    assert {row.refused for row in found[1:]} == {"weights"}


def test_several_directories_are_read_together(save: Save, tmp_path: Path, capsys: Captured) -> None:
    """Each once, however often it is named; a missing one is an error."""
    save("one", place="a")
    save("two", place="b")
    both = ["--runs-dir", str(tmp_path / "a"), "--runs-dir", str(tmp_path / "b")]
    ids = ["one-continual-s0", "two-continual-s0"]

    def said(*command: str) -> str:
        assert invoke(list(command)) == 0
        return capsys.readouterr().out

    again = ["--runs-dir", f"{tmp_path / 'a' / '..'}/a", "--format", "csv"]
    lines = list(csv.DictReader(io.StringIO(said("leaderboard", *both, *again))))
    assert sorted((line["defense"], line["seeds"]) for line in lines) == [("one", "[0]"), ("two", "[0]")]
    assert sorted(load(tmp_path / "a", tmp_path / "b")["defense"]) == ["one", "two"]
    listed = json.loads(said("runs", *both, "--format", "json"))
    assert [(entry["id"], entry["trust"]) for entry in listed] == [(id, "self-reported") for id in ids]
    assert "2 runs checked" in said("runs", "check", *both)
    assert "1 run checked" in said("runs", *both, "check", ids[1])
    said("plot", "tradeoff", *both, "--out", str(tmp_path / "both.svg"))
    assert "two" in (tmp_path / "both.svg").read_text()
    assert invoke(["leaderboard", *both, "--runs-dir", str(tmp_path / "c")]) == 2
    assert capsys.readouterr().err.startswith("error: no runs directory at")


def test_the_site_is_a_runs_directory_that_ranks(save: Save, tmp_path: Path) -> None:
    """It keeps outcomes beside records, and says which rows are not ranked and which badge they have."""
    first = save("honest")
    save("forged", robust=95, outcomes=False)
    out = tmp_path / "site"
    command = ["leaderboard", "--runs-dir", str(tmp_path / "runs")]
    assert invoke([*command, "--format", "html", "--out", str(out)]) == 0
    assert [(row.defense, row.rank) for row in board(out / "runs")] == [("honest", 1), ("forged", None)]
    copied = next((out / "runs").glob("honest*/outcomes.npz"))
    assert np.array_equal(read_outcomes(copied)[1], read_outcomes(first / "outcomes.npz")[1])
    page = (out / "index.html").read_text()
    assert "not ranked" in page
    assert "Worst case on 100 points" in page
    style = (out / "assets" / "site.css").read_text()
    looks = [
        re.findall(rf"\.chip\.{name} \{{(.*?)\}}", style, re.DOTALL)[0]
        for name in ("retrained", "re-evaluated")
    ]
    assert looks[0] != looks[1]


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
