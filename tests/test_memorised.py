"""Models trained on test points, and one model under two seeds, are refuted; honest runs are not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import few_probes

from advbench import run
from advbench.benchmark import prepare as preparing
from advbench.cli.main import invoke
from advbench.data import DataSet, Split
from advbench.runs import saved
from advbench.runs.saved import Run, load_run
from advbench.verify import Asked, verify_run
from advbench.verify.accept import accept
from advbench.verify.memorised import CODE, Found, better
from leaderboards import (
    Verified,
    digests_of,
    find_results,
    json_bytes,
    pack,
    rows,
    trust_of,
    write_bytes,
    write_checksums,
    write_verified,
)

Captured = pytest.CaptureFixture[str]
OPTIONS: dict[str, Any] = {
    "sequence": "pgd:eps=0.1,steps=3",
    "unseen": "none",
    "epochs": 20,
    "set": {"pretrain.epochs": 1},
    "threads": 1,
    "device": "cpu",
    "surrogate": None,
}
LAST = Asked(stages="last", seed=0)


def cheat(digits: DataSet, train: Split, place: Path, **options: Any) -> Run:
    """A run trained on whatever it is given, which claims the data set as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "load_dataset", lambda *_: replace(digits, train=train))
        return load_run(run("standard", runs_dir=place, **{**OPTIONS, **options}).path)


@pytest.fixture(autouse=True, scope="module")
def _few_probes() -> Iterator[None]:
    """None of these tests is about what an audit finds."""
    with few_probes():
        yield


@pytest.fixture(scope="module")
def trained_on_test_points(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a cheat; tests copy it before they write to it."""
    return cheat(digits, digits.test, tmp_path_factory.mktemp("cheat"))


@pytest.fixture
def found(trained_on_test_points: Run, tmp_path: Path) -> Run:
    """A copy of that run."""
    path = trained_on_test_points.path
    return load_run(shutil.copytree(path, tmp_path / "runs" / path.name))


@pytest.mark.slow
def test_trained_on_the_test_points(found: Run, tmp_path: Path, capsys: Captured) -> None:
    """Consistent in all that is stored; refuted with both accuracies, not accepted, and not ranked."""
    (row,) = rows(find_results(found.path.parent)[0])
    assert row.rank == 1
    pack(found.path, tmp_path / "sent.zip")
    assert accept(tmp_path / "sent.zip", tmp_path / "store").place is None
    assert invoke(["verify", str(found.path), "--seed", "0"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert f"fault: {CODE}: " in out
    assert "of 360 measured test points" in out
    assert "of 144 validation points" in out
    assert "of 1293 training points" in out
    assert trust_of(found.path) == "refuted"
    (row,) = rows(find_results(found.path.parent)[0])
    assert (row.rank, row.refused, row.trust) == (None, "refuted", "refuted")
    assert CODE in row.note


@pytest.mark.slow
def test_trained_on_the_measured_part_of_them(digits: DataSet, tmp_path: Path) -> None:
    """Test points that nobody measured, and those that fewer attacks met, show it."""
    first = Split(digits.test.x[:60], digits.test.y[:60])
    again = Split(first.x.repeat(10, 1, 1, 1), first.y.repeat(10))
    found = cheat(digits, again, tmp_path, points=60, epochs=6)
    report = verify_run(found, LAST)
    (fault, *_) = [line for line in report.faults if "unmeasured" in line]
    assert fault.startswith(f"{CODE}: ")
    assert "of 60 measured test points" in fault
    assert "of 300 unmeasured test points" in fault
    mixed = cheat(digits, again, tmp_path, points="360,pgd=60", eval="fgsm:eps=0.1", epochs=6)
    report = verify_run(mixed, LAST)
    assert any("measured test points 0 to 59" in line for line in report.faults), report.faults


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_an_honest_run_is_not_flagged(trained_run: Run, seed: int) -> None:
    """Whatever points the verification draws; the report has all accuracies."""
    report = verify_run(trained_run, Asked(stages="last", attacks="fgsm", seed=seed))
    assert report.faults == []
    groups = {one["group"]: one["points"] for one in report.accuracies if one["attack"] == "clean"}
    assert groups == {
        "measured test points 0 to 99": 100,
        "measured test points 100 to 359": 260,
        "validation points": 144,
        "training points": 1293,
    }
    assert {one["attack"].partition(":")[0] for one in report.accuracies} == {"clean", "gaussian-noise"}


def test_what_flags_by_hand() -> None:
    """5 points, or 2 near 100 %, and p < 0.01 over the number of comparisons, one-sided."""

    def pair(right: int, other: int, points: int = 500) -> tuple[Found, Found]:
        return Found("measured test points", "clean", points, right), Found(
            "validation points", "clean", points, other
        )

    assert [line for line, _ in better([pair(490, 440)])] == [
        "clean: 98.0 % of 500 measured test points, 88.0 % of 500 validation points (p 1.1e-10)"
    ]
    assert list(better([pair(440, 490)])) == []
    # 4 points, both p below 0.0001: three times the errors may be the images, all of them are not.
    assert list(better([pair(490, 470)])) == []
    assert len(list(better([pair(500, 480)]))) == 1
    assert list(better([pair(500, 495)])) == []
    assert list(better([pair(30, 26, 40)])) == []
    # p is 0.0059: enough for one comparison, and not for the most striking of two.
    assert len(list(better([pair(400, 365)]))) == 1
    assert list(better([pair(400, 365), pair(400, 400)])) == []


@pytest.mark.slow
def test_a_folder_s_test_images_may_be_easier(
    found: Run, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made the folder chose them: that is a note."""
    monkeypatch.setattr(saved.Run, "dataset", property(lambda _: "folder:somewhere"))
    monkeypatch.setattr(saved, "load_dataset", lambda *_: digits)
    report = verify_run(found, LAST)
    assert report.faults == []
    assert any(note.startswith(CODE) for note in report.notes)


@pytest.mark.quick(r"another file")
@pytest.mark.parametrize("disguise", ["none", "another file", "no checksums"])
def test_one_model_under_two_seeds(small_run: Run, tmp_path: Path, disguise: str) -> None:
    """Each is refuted and not ranked, whatever was done to the file; training again shows whose it is."""
    first, second = tmp_path / "runs" / small_run.path.name, tmp_path / "runs" / "copy"
    shutil.copytree(small_run.path, first)
    shutil.copytree(small_run.path, second)
    tree = small_run.record.dump()
    tree["id"], tree["config"]["seed"] = "copy", 1
    (second / "run.json").unlink()
    if disguise == "another file":
        for name in ("stages/2.safetensors", "model.safetensors"):
            save_file(load_file(second / name), second / name, metadata={"made": "up"})
    data = json_bytes(tree)
    if disguise == "no checksums":
        for name in ("SHA256SUMS", "run.json"):
            (first / name).unlink()
    write_checksums(second, data)
    write_bytes(second / "record.json", data)
    board = rows(find_results(tmp_path / "runs")[0])
    assert [(row.rank, bool(row.refused), row.seeds) for row in board] == [
        (None, True, (0,)),
        (None, True, (1,)),
    ]
    for row in board:
        assert f"run {small_run.record.id} of seed 0" in row.note
        assert "run copy of seed 1" in row.note
    report = verify_run(load_run(first), LAST)
    assert any("weights: those of run copy, which says seed 1" in fault for fault in report.faults)
    assert report.comparisons == []
    report = verify_run(load_run(second), LAST)
    assert any(f"weights: those of run {small_run.record.id}" in fault for fault in report.faults)
    mark = {
        "run": small_run.record.id,
        "how": "retrained",
        "when": "",
        "machine": {},
        "sample": {},
        "version": "",
    }
    write_verified(first, Verified(**mark, files=digests_of(first)))
    board = rows(find_results(tmp_path / "runs")[0])
    assert [(row.rank, bool(row.refused), row.seeds) for row in board] == [
        (1, False, (0,)),
        (None, True, (1,)),
    ]
