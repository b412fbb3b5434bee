"""Certificates beside a run: bounds from both sides, and attacks that break what is proved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from leaderboards import (
    Record,
    RecordError,
    check_run,
    find_results,
    read_outcomes,
    read_record,
    rows,
    to_csv,
    to_markdown,
    to_table,
)
from leaderboards.audits.proofs import BELOW, certified
from leaderboards.boards.sheets import View
from leaderboards.records.certificates import read_certificate
from leaderboards.site.build import write_site

RESULTS = ROOT / "leaderboards" / "results"
Call = Callable[..., tuple[str, str]]
Bracketed = Callable[..., Path]


def survivors(path: Path, points: int) -> list[bool]:
    """Which points survive every linf attack of a run with eps 0.2 or less, after the last stage."""
    record = read_record(path)
    inside = [
        place
        for place, one in enumerate(record.attacks)
        if one.norm in ("linf", "l2", "l1") and one.eps is not None and one.eps <= 0.2
    ]
    assert inside
    clean, robust = read_outcomes(path / "outcomes.npz")
    return (clean[-1] & robust[-1][inside].all(0))[:points].tolist()


def tree_of(record: Record, clean: list[bool], proved: list[bool], **more: Any) -> dict[str, Any]:
    """A certificate of a run's model for linf 0.2."""
    counts = {"points": len(clean), "clean_correct": sum(clean), "certified": sum(proved)}
    return {
        "schema": 1,
        "kind": "certificates",
        "subject": {"run": record.id},
        "fingerprint": record.environment["data"]["fingerprint"],
        "norm": "linf",
        "eps": 0.2,
        "method": "crown",
        "certifies": "model",
        "counts": counts,
        "outcomes": {"clean": clean, "certified": proved},
    } | more


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a published run of digits, alone in a directory of runs."""
    found = next(path for path in sorted(RESULTS.glob("*at-digits*")) if (path / "outcomes.npz").exists())
    return shutil.copytree(found, tmp_path / "runs" / found.name)


@pytest.fixture
def bracket(run: Path) -> Bracketed:
    """Write a certificate of 100 points beside the run; by default of every second point that survives."""

    def written(proved: list[bool] | None = None, **more: Any) -> Path:
        clean = read_outcomes(run / "outcomes.npz")[0][-1, :100].tolist()
        left = survivors(run, 100)
        proved = [one and place % 2 == 0 for place, one in enumerate(left)] if proved is None else proved
        path = run / "certificates" / "linf-0.2.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(tree_of(read_record(run), clean, proved, **more)))
        return path

    return written


def test_bounds_are_of_the_same_points(run: Path, bracket: Bracketed) -> None:
    """Proved points below; above, points that survive all attacks inside the ball, not the weakest one."""
    bracket()
    found = certified(run, read_record(run))
    assert not found.flags
    assert not found.problems
    (one,) = found.brackets
    left = survivors(run, 100)
    assert (one.points, one.low, one.high) == (100, sum(left[::2]), sum(left))
    assert found.judged(read_record(run)).audit.checks[-1] == BELOW
    (run / "outcomes.npz").unlink()
    (counted,) = certified(run, read_record(run)).brackets
    assert one.high <= counted.high <= 100


def test_of_two_methods_the_one_that_proves_more_counts(run: Path, bracket: Bracketed) -> None:
    """On the same points, whichever file comes first."""
    left = survivors(run, 100)
    for first, second in (("a.json", "z.json"), ("z.json", "a.json")):
        bracket([False] * 100, method="ibp").rename(run / "certificates" / first)
        bracket().rename(run / "certificates" / second)
        (one,) = certified(run, read_record(run)).brackets
        assert one.low == sum(left[::2])


def test_an_attack_that_breaks_a_proved_point_is_flagged(run: Path, bracket: Bracketed, call: Call) -> None:
    """Planted: a point is proved that an attack broke; the row is suspect, and the flag names the point."""
    left, clean = survivors(run, 100), read_outcomes(run / "outcomes.npz")[0][-1, :100]
    planted = next(place for place in range(100) if clean[place] and not left[place])
    bracket([place == planted for place in range(100)])
    found = certified(run, read_record(run))
    assert {flag.code for flag in found.flags} == {BELOW}
    assert all(flag.evidence["first_broken"] == [planted] for flag in found.flags)
    results, problems = find_results(run.parent)
    assert not problems
    (row,) = rows(results)
    assert row.verdict == "suspect"
    assert BELOW in row.flags
    shown, _ = call("show", run)
    assert f"{BELOW}: " in shown
    assert "audit suspect" in shown
    assert BELOW in call("leaderboard", "--runs-dir", run.parent)[0]


def test_counts_alone_are_compared_without_outcomes(run: Path) -> None:
    """An attack that leaves fewer points than are proved among those that it met."""
    record = read_record(run)
    few = min(cell.robust for text, cell in record.last_cells().items() if text.startswith(("pgd", "fgsm")))
    clean = read_outcomes(run / "outcomes.npz")[0][-1, :]
    right = np.flatnonzero(clean)
    (run / "outcomes.npz").unlink()
    for count, flagged in ((few, False), (few + 1, True)):
        proved = np.zeros(len(clean), dtype=bool)
        proved[right[:count]] = True
        path = run / "certificates" / "linf-0.2.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(tree_of(record, clean.tolist(), proved.tolist())))
        strong = [flag for flag in certified(run, record).flags if flag.evidence["robust"] == few]
        assert bool(strong) == flagged


@pytest.mark.parametrize(
    ("more", "flagged"),
    [
        ({"eps": 0.1}, False),
        ({"norm": "l2"}, False),
        ({"eps": 0.3}, True),
        ({"certifies": "smoothed model"}, False),
    ],
)
def test_only_attacks_inside_the_ball_count(
    run: Path, bracket: Bracketed, more: dict[str, Any], flagged: bool
) -> None:
    """A larger attack, another norm or a smoothed model contradicts nothing; a larger ball holds them too."""
    clean = read_outcomes(run / "outcomes.npz")[0][-1, :100].tolist()
    bracket(clean, **more)
    record = read_record(run)
    outside = {"pgd", "fgsm", "bim", "mim", "autoattack"}
    texts = {flag.evidence["attack"] for flag in certified(run, record).flags}
    probes = {cell.attack for cell in record.audit.probes}
    own = {text for text in texts if text not in probes and text.partition(":")[0] in outside}
    assert bool(own) == flagged


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree["counts"].update(certified=99, clean_correct=98), "certified <= clean_correct"),
        (lambda tree: tree["counts"].update(points=50), "certified <= clean_correct|50 points"),
        (lambda tree: tree["counts"].update(certified=tree["counts"]["certified"] - 1), "do not fit"),
        (lambda tree: tree["outcomes"]["clean"].pop(), "100 points"),
        (lambda tree: tree.update(eps=-0.1), "eps"),
        (lambda tree: tree.update(norm="l7"), "norm"),
        (lambda tree: tree.pop("outcomes"), "missing key 'outcomes'"),
        (lambda tree: tree["subject"].update(run="another"), "another"),
        (lambda tree: tree.update(fingerprint="sha256:0"), "other data"),
    ],
)
def test_an_impossible_certificate_is_refused(
    run: Path, bracket: Bracketed, call: Call, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """One line that names the file; the run is shown without it, and a check of the run finds it."""
    path = bracket()
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    found = certified(run, read_record(run))
    assert not found.brackets
    (line,) = found.problems
    with pytest.raises(AssertionError if "another" in said or "data" in said else RecordError):
        assert read_certificate(path) is None
    assert str(path) in line
    assert any(part in line for part in said.split("|"))
    assert "\n" not in line
    out, err = call("show", run)
    assert "linf 0.2" not in out
    assert line.partition(":")[0] in err
    assert find_results(run.parent)[1] == [line]
    assert any("certificates" in problem for problem in check_run(run).problems)


def test_a_point_that_is_wrong_is_never_certified(run: Path, bracket: Bracketed) -> None:
    """Even if the counts fit."""
    wrong = next(place for place in range(100) if not read_outcomes(run / "outcomes.npz")[0][-1, place])
    path = bracket([place == wrong for place in range(100)])
    with pytest.raises(RecordError, match="wrong without any change"):
        read_certificate(path)
    path.write_text("{")
    with pytest.raises(RecordError, match="not a certificate"):
        read_certificate(path)


def test_boards_and_pages_show_both_ends(run: Path, bracket: Bracketed, call: Call, tmp_path: Path) -> None:
    """In every format, and only where some row has a certificate."""
    before = rows(find_results(run.parent)[0])
    assert "certified" not in to_markdown(before)
    bracket()
    left = survivors(run, 100)
    text = f"{float(sum(left[::2])):.1f} to {float(sum(left)):.1f}"
    found = rows(find_results(run.parent)[0])
    assert text in to_markdown(found)
    assert "linf 0.2 certified to attacked" in to_markdown(found)
    assert to_table(found)
    assert f"{sum(left) / 100}" in to_csv(found, View.of("label,bounds.linf-0.2"))
    assert "certified.linf-0.2_mean" in to_csv(found)
    assert text in call("leaderboard", "--runs-dir", run.parent, "--columns", "label,bounds.linf-0.2")[0]
    assert text in call("leaderboard", "--runs-dir", run.parent)[0]
    assert f"{text} %" in call("show", run)[0]
    write_site(tmp_path / "site", found)
    assert text in (tmp_path / "site" / "index.html").read_text("utf-8")
    (page,) = (tmp_path / "site" / "runs").glob("*/index.html")
    assert text in page.read_text("utf-8")
    assert 'class="bracket"' in page.read_text("utf-8")


def test_a_record_cannot_claim_a_certificate(run: Path) -> None:
    """Metrics of that name in the record itself are ignored."""
    tree = json.loads((run / "record.json").read_text())
    tree["metrics"]["certified.linf-0.2"] = tree["metrics"]["attacked.linf-0.2"] = 0.9
    (run / "record.json").write_text(json.dumps(tree))
    (row,) = rows(find_results(run.parent)[0])
    assert not [name for name in row.metrics if name.startswith("certified.")]
