"""A record that its own stored outcomes contradict is listed and not ranked; no model is run to see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, python

from leaderboards import (
    Row,
    find_records,
    find_results,
    json_bytes,
    parse_record,
    read_record,
    rows,
    write_bytes,
    write_checksums,
    write_outcomes,
)
from leaderboards.audits.contradictions import contradiction_of, first_contradiction
from leaderboards.records.store import Bools, read_all_outcomes
from leaderboards.statistics.measured import metrics_of

RESULTS = ROOT / "leaderboards" / "results"
Tree = dict[str, Any]
Forgery = Callable[[Tree, Bools, Bools, Bools], None]


def recount(tree: Tree, clean: Bools, robust: Bools, probes: Bools) -> None:
    """Make cells, metrics and sums by class of a record fit its outcomes."""
    texts = [entry["text"] for entry in tree["attacks"]]
    roles = [entry["role"] for entry in tree["attacks"]]
    for cell in tree["cells"]:
        if cell["attack"] in texts:
            cell["robust"] = int(robust[cell["stage"], texts.index(cell["attack"])].sum())
    for cell, outcome in zip(tree["audit"].get("probes", []), probes, strict=False):
        cell["robust"] = int(outcome.sum())
    seen, unseen = roles.count("seen"), roles.count("unseen")
    counts = {"regime": tree["regime"], "seen": seen, "unseen": unseen, "points": limits(tree)}
    tree["metrics"] |= metrics_of(clean, robust, **counts)
    for column, text in enumerate(texts):
        left = int(robust[-1, column].sum())
        for one in tree["per_class"]:
            one["robust"][text] = min(left, one["clean_correct"])
            one["worst_case"] = 0
            left -= one["robust"][text]


def consistent(path: Path, forgery: Forgery) -> None:
    """Forge a run's outcomes or record, and make everything else fit again, checksums too."""
    clean, robust, probes = (array.copy() for array in read_all_outcomes(path / "outcomes.npz"))
    tree = read_record(path).dump()
    before = dict(tree["metrics"])
    forgery(tree, clean, robust, probes)
    write_outcomes(path / "outcomes.npz", clean, robust, probes=probes)
    changed = {name: value for name, value in tree["metrics"].items() if value != before[name]}
    recount(tree, clean, robust, probes)
    tree["metrics"] |= changed
    data = json_bytes(tree)
    write_checksums(path, data)
    write_bytes(path / "record.json", data)


def limits(tree: Tree) -> list[int]:
    """On how many points each attack was measured."""
    counts = {cell["attack"]: cell["n"] for cell in tree["cells"]}
    return [counts[entry["text"]] for entry in tree["attacks"]]


@pytest.fixture
def forged(tmp_path: Path) -> Callable[[Forgery], Path]:
    """A published run beside the two other seeds of its row, forged."""

    def make(forgery: Forgery) -> Path:
        found = sorted(RESULTS.glob("*-standard-digits-s?"))[:3]
        for place in found:
            shutil.copytree(place, tmp_path / "runs" / place.name)
        path = tmp_path / "runs" / found[0].name
        consistent(path, forgery)
        return path

    return make


def board(place: Path) -> list[Row]:
    """The rows of a runs directory."""
    return rows(find_results(place)[0])


def test_published_records_fit_their_outcomes() -> None:
    """All of them."""
    places = [path.parent for path in sorted(RESULTS.glob("*/record.json"))]
    assert len(places) > 200
    for place in places:
        assert contradiction_of(place, read_record(place)) == "", place.name


def flipped(tree: Tree, clean: Bools, robust: Bools, _: Bools) -> None:
    for column, n in enumerate(limits(tree)):
        robust[:, column, :n] = clean[:, :n] & ~robust[:, column, :n]


def all_survive(tree: Tree, clean: Bools, robust: Bools, _: Bools) -> None:
    for column, n in enumerate(limits(tree)):
        robust[:, column, :n] = clean[:, :n]


def also_the_probes(tree: Tree, clean: Bools, robust: Bools, probes: Bools) -> None:
    all_survive(tree, clean, robust, probes)
    for outcome, cell in zip(probes, tree["audit"]["probes"], strict=True):
        outcome[: cell["n"]] = clean[-1, : cell["n"]]


def one_attack(tree: Tree, clean: Bools, robust: Bools, _: Bools) -> None:
    n = limits(tree)[-1]
    robust[:, -1, :n] = clean[:, :n]


def wrong_clean(_: Tree, clean: Bools, robust: Bools, __: Bools) -> None:
    robust[-1, 0] = ~clean[-1]


def metric(tree: Tree, *_: Bools) -> None:
    tree["metrics"]["worst_case_accuracy"] = 0.9


def count(tree: Tree, *_: Bools) -> None:
    tree["cells"][-1]["clean_correct"] += -1


def without_probes(tree: Tree, clean: Bools, robust: Bools, probes: Bools) -> None:
    all_survive(tree, clean, robust, probes)
    tree["audit"]["probes"] = []
    probes.resize((0, 0), refcheck=False)


def without_their_outcomes(tree: Tree, clean: Bools, robust: Bools, probes: Bools) -> None:
    all_survive(tree, clean, robust, probes)
    probes.resize((0, 0), refcheck=False)


def a_verdict(tree: Tree, *_: Bools) -> None:
    tree["audit"]["verdict"] = "suspect"


def a_flag(tree: Tree, *_: Bools) -> None:
    flag = {"code": "accuracy-rises-with-eps", "message": "m", "evidence": {"weak": "a", "strong": "b"}}
    tree["audit"] |= {"verdict": "suspect", "flags": [*tree["audit"]["flags"], flag]}


def a_threat(tree: Tree, *_: Bools) -> None:
    tree["attacks"][0]["norm"] = "l1"


FORGED: dict[str, tuple[Forgery, str]] = {
    "flipped": (flipped, "audit: 0 flags"),
    "all survive": (all_survive, "audit: 0 flags weak-suite, the stored outcomes give"),
    "probes too": (also_the_probes, "audit: 0 flags unbounded-attack-fails, the stored outcomes give 1"),
    "no probes": (without_probes, "which needs probes, but has none"),
    "no outcomes of probes": (without_their_outcomes, "it has 15 probes, but their outcomes are not stored"),
    "one attack": (one_attack, "fgsm:eps=0.2, which searches less, 10.3 %"),
    "wrong clean": (wrong_clean, "points that are misclassified when clean are marked robust"),
    "a metric": (metric, "metrics: worst_case_accuracy is 0.9, the stored outcomes give"),
    "a count": (count, "the stored outcomes have"),
    "a verdict": (a_verdict, "audit: the verdict is suspect, its flags give ok"),
    "a flag": (a_flag, "audit: 1 flags accuracy-rises-with-eps, the stored outcomes give 0"),
    "a threat": (a_threat, "is not the attack's"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_row_is_listed_and_not_ranked(case: str, forged: Callable[[Forgery], Path]) -> None:
    """Whatever else was made to fit; the other seeds of its row keep their rank."""
    change, said = FORGED[case]
    path = forged(change)
    for _ in range(2):
        found = board(path.parent)
        standing = [(row.rank, row.refused, row.seeds) for row in found]
        assert standing == [(1, "", (1, 2)), (None, "outcomes", (0,))]
        assert said in found[1].note
        assert found[1].note.startswith("run 20261124-172205-standard-digits-s0 contradicts its own outcomes")
    # A reference is not built on it either.
    records, problems = find_records(path.parent, measured=True)
    assert len(records) == 2
    assert any(said in line for line in problems)


def test_a_search_that_finds_less_with_more_steps(forged: Callable[[Forgery], Path]) -> None:
    """Where the audit calls the model ok; fewer steps cannot find far more."""
    path = forged(lambda *_: None)
    clean, robust, _ = (array.copy() for array in read_all_outcomes(path / "outcomes.npz"))
    tree = read_record(path).dump()
    tree["audit"] |= {"probes": [], "checks": ["weak-suite"]}
    texts = [entry["text"] for entry in tree["attacks"]]
    place = next(i for i, text in enumerate(texts) if text.startswith("pgd:"))
    less = texts[place].replace("steps=50", "steps=5")
    tree = json.loads(json.dumps(tree).replace(f'"{texts[0]}"', f'"{less}"'))
    tree["attacks"][0] |= {"name": "pgd", "family": "projected-gradient"}
    none = np.zeros((0, 0), dtype=bool)
    assert first_contradiction(parse_record(tree, "here"), clean, robust, none) == ""
    robust[-1, place] = clean[-1]
    recount(tree, clean, robust, none)
    line = first_contradiction(parse_record(tree, "here"), clean, robust, none)
    assert "leaves 98.6 %" in line
    assert "which searches less" in line


def test_the_board_loads_no_torch(forged: Callable[[Forgery], Path]) -> None:
    """It compares outcomes with numpy alone."""
    runs_dir = str(forged(lambda *_: None).parent)
    code = (
        "import sys; from advbench.cli.main import invoke; "
        f"invoke(['leaderboard', '--runs-dir', {runs_dir!r}, '--format', 'csv']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "contradicts" not in done.stdout
