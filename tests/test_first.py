"""The first leaderboard: its grids can be planned, and its pages come from runs."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import few_probes

from advbench import run
from advbench.runs.saved import Run
from advbench.sweep.grid import read_grid
from advbench.sweep.plan import make_plan
from advbench.verify.flags import check_audit, compared
from advbench.verify.subject import subject_of
from leaderboards import check_run, find_results, read_record, rows
from leaderboards.audits.following import FROM_OUTCOMES, from_outcomes, verdict_of

RESULTS = Path(__file__).parent.parent / "leaderboards" / "results"
FIRST = Path(__file__).parent.parent / "benchmarks" / "first"
DEFENSES = 16
"""Every defense of ours in its own regime, and adversarial training in the joint one too."""


def test_digits_are_planned_as_asked(tmp_path: Path) -> None:
    """Every defense, four sequences, three seeds, five of two, two also with ten steps; LoRKD on three."""
    plan = make_plan(read_grid(FIRST / "digits.yaml"), tmp_path)
    assert len(plan.cells) == (DEFENSES * 4 - 1) * 3 + 2 * 4 * 2 + 2 * 4 * 3
    for cell in plan.cells:
        config = cell.config
        seen = {text.partition(":")[0] for text in config.sequence}
        assert not seen & {text.partition(":")[0] for text in config.unseen}
        assert [text.partition(":")[0] for text in config.eval] == ["autoattack"]


@pytest.mark.parametrize(("name", "cells"), [("mnist", DEFENSES * 2), ("cifar10", 12)])
def test_other_grids_are_read(name: str, cells: int) -> None:
    """As many runs as they should be."""
    assert len(read_grid(FIRST / f"{name}.yaml")) == cells


@pytest.fixture(scope="module")
def page() -> dict[str, Callable[..., Any]]:
    """What makes the pages."""
    return runpy.run_path(str(FIRST / "page.py"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two defenses of two seeds, trained for a moment."""
    place = tmp_path_factory.mktemp("first")
    options: dict[str, Any] = {"sequence": "fgsm,pgd:steps=2", "unseen": "gaussian-noise", "points": 10}
    options |= {"epochs": 1, "set": {"pretrain.epochs": 1}, "train_set": {"pgd.steps": 1}, "threads": 1}
    with few_probes():
        for seed in (0, 1):
            for defense in ("at", "air"):
                run(defense, runs_dir=place, seed=seed, **options)
    return place


def test_pages_come_from_records_without_weights(
    page: dict[str, Callable[..., Any]], runs: Path, tmp_path: Path
) -> None:
    """Records are copied once, are whole and give the same board; the page has tables and pictures."""
    results = tmp_path / "results"
    for _ in range(2):
        page["publish"](runs, results)
    assert len(list(results.iterdir())) == 4
    assert not list(results.rglob("*.safetensors"))
    assert all(check_run(one).problems == [] for one in results.iterdir())
    found = rows(find_results(results)[0])
    assert [row.metrics for row in found] == [row.metrics for row in rows(find_results(runs)[0])]
    text = page["page"](found, tmp_path / "leaderboard")
    assert "| AIR and sequential adversarial training | " in text
    assert "p = " in text or "p < " in text
    assert "## What it costs: digits" in text
    pictures = {path.name for path in (tmp_path / "leaderboard").iterdir()}
    assert pictures == {"forgetting-1.svg", "tradeoff-1.svg"}


def test_what_is_not_published(page: dict[str, Callable[..., Any]], runs: Path, tmp_path: Path) -> None:
    """More than the size agreed on for all records, and records that name a folder of this machine."""
    results = tmp_path / "results"
    page["publish"](runs, results)
    with (results / "ballast").open("wb") as file:
        file.truncate(page["LARGEST"])
    with pytest.raises(SystemExit, match="more than 20,971,520"):
        page["publish"](runs, results)
    shutil.copytree(runs, tmp_path / "runs")
    record = max((tmp_path / "runs").iterdir()) / "record.json"
    tree = json.loads(record.read_text())
    tree["config"]["data_dir"] = str(tmp_path)
    record.write_text(json.dumps(tree))
    with pytest.raises(SystemExit, match="make it with a relative one"):
        page["publish"](tmp_path / "runs", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_published_audits_follow_from_their_outcomes_by_old_rules_and_new() -> None:
    """Every tenth run: flags are recomputed as its version made them, and today's rules leave its verdict."""
    places = sorted(path.parent for path in RESULTS.glob("*/record.json"))[::10]
    assert len(places) > 20
    for place in places:
        record = read_record(place)
        subject = subject_of(Run(place, record, True))
        assert list(check_audit(subject)) == [], place.name
        stored = compared(subject)
        assert stored is not None
        others = [flag for flag in record.audit.flags if flag.code not in FROM_OUTCOMES]
        assert verdict_of([*others, *from_outcomes(*stored)]) == record.audit.verdict, place.name
