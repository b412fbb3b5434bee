"""Run directories: atomic files, exclusive names, damaged records."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import python, together
from record_trees import record_tree

from leaderboards import RecordError, find_records, parse_record
from leaderboards.records import store

RECORD = record_tree({"regime": "joint"}, id="at", metrics={"average_robust_accuracy": 0.1 + 0.2})


def fail(*_: object) -> None:
    """Stands in for a system call on a full disk."""
    raise OSError(28, "No space left on device")


def interrupt(*_: object) -> None:
    """Stands in for a system call during Ctrl-C."""
    raise KeyboardInterrupt


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    store.write_bytes(path, b"old")
    store.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


FULL = (RecordError, r"^cannot write .*file: No space left on device$")


@pytest.mark.parametrize(
    ("step", "happens", "raised"),
    [("fsync", fail, FULL), ("replace", fail, FULL), ("replace", interrupt, (KeyboardInterrupt, "^$"))],
)
def test_a_failing_or_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, happens: Any, raised: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, happens)
    with pytest.raises(raised[0], match=raised[1]):
        store.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_new_content_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    store.write_bytes(tmp_path / "file", b"new")
    assert calls[:2] == ["fsync", "replace"]


def test_a_file_is_made_with_the_usual_permissions(tmp_path: Path) -> None:
    # A temporary file is often private to its owner; a shared run must not be.
    (tmp_path / "plain").write_bytes(b"")
    store.write_bytes(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_keeps_floats_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    value = {"a": 0.1 + 0.2, "b": 1e-300, "text": "ε"}
    store.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text("utf-8")) == value


def outcomes() -> tuple[Any, Any]:
    """Random outcomes of three rows, four attacks and 50 points."""
    random = np.random.default_rng(0)
    return random.random((3, 50)) < 0.9, random.random((3, 4, 50)) < 0.5


def test_outcomes_round_trip_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, robust = outcomes()
    store.write_outcomes(tmp_path / "a.npz", clean, robust)
    # A zip archive stores times: another day must give the same bytes; so must another memory layout.
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000))
    store.write_outcomes(tmp_path / "b.npz", np.asfortranarray(clean), np.asfortranarray(robust))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read_clean, read_robust = store.read_outcomes(tmp_path / "b.npz")
    np.testing.assert_array_equal(read_clean, clean, strict=True)
    np.testing.assert_array_equal(read_robust, robust, strict=True)


def test_outcomes_of_the_wrong_shape_or_type_are_refused(tmp_path: Path) -> None:
    clean, robust = outcomes()
    for wrong in (clean[:2], clean[:, :9], clean.astype(int)):
        with pytest.raises(ValueError, match=r"must be boolean|expected clean \(T\+1, n\)"):
            store.write_outcomes(tmp_path / "x.npz", wrong, robust)
    with pytest.raises(ValueError, match=r"expected clean \(T\+1, n\)"):
        store.write_outcomes(tmp_path / "x.npz", clean, robust[0])
    assert os.listdir(tmp_path) == []


def test_damaged_outcomes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    store.write_outcomes(path, *outcomes())
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", clean=np.zeros(3))
    np.save(tmp_path / "single.npy", np.zeros(3))
    others = [(tmp_path / name).read_bytes() for name in ("other.npz", "single.npy")]
    others += [b"", b"PK", b"nonsense", whole[: len(whole) // 2], whole.replace(b"clean", b"clear")]
    for data in others:
        path.write_bytes(data)
        with pytest.raises(RecordError, match=r"^damaged outcomes .*x\.npz: .*$"):
            store.read_outcomes(path)
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            clean, robust = store.read_outcomes(path)
        except RecordError:
            continue
        # Some bytes (dates, attributes) carry nothing: then the outcomes must be the true ones.
        np.testing.assert_array_equal(clean, outcomes()[0], strict=True)
        np.testing.assert_array_equal(robust, outcomes()[1], strict=True)
    with pytest.raises(RecordError, match=r"^cannot read outcomes .*none\.npz: No such file"):
        store.read_outcomes(tmp_path / "none.npz")


def test_eight_processes_get_eight_directories(tmp_path: Path) -> None:
    """Eight processes that ask for one name at one moment get eight directories."""
    runs = tmp_path / "deep" / "runs"
    together(8, lambda number: (store.new_run_directory(runs, "at-digits") / f"{number}").touch())
    assert set(os.listdir(runs)) == {"at-digits", *(f"at-digits-{number}" for number in range(2, 9))}
    assert sorted(path.name for path in runs.glob("*/?")) == [str(number) for number in range(8)]


def test_a_runs_directory_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for runs in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecordError, match=r"^runs directory .* is a file or lies below one: name anoth"):
            store.new_run_directory(runs, "at")


@pytest.mark.parametrize("stem", ["", ".", "..", "a/b", "../a", "a\\b"])
def test_a_run_name_is_a_plain_name(tmp_path: Path, stem: str) -> None:
    with pytest.raises(RecordError, match="must be one plain directory name"):
        store.new_run_directory(tmp_path / "runs", stem)
    assert os.listdir(tmp_path) == []


def test_a_runs_directory_without_permission_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RecordError, match=r"^cannot create runs directory .*runs: Permission denied$"):
        store.new_run_directory(tmp_path / "runs", "at")


def test_read_record_takes_the_directory_or_the_file(tmp_path: Path) -> None:
    record = parse_record(RECORD, "here")
    run = store.new_run_directory(tmp_path, "at")
    path = store.write_record(run, record)
    assert path == run / "record.json"
    assert store.read_record(run) == store.read_record(path) == record
    assert json.loads(path.read_bytes()) == RECORD
    with pytest.raises(RecordError, match=r"^no record at .*none: the run did not finish"):
        store.read_record(tmp_path / "none")


def test_a_damaged_record_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    for name, data in {
        "a": json.dumps(RECORD),
        "b": "{",
        "c": json.dumps(RECORD | {"schema": 9}),
        "d": json.dumps(RECORD | {"id": "other"}),
        "deep/er": json.dumps(RECORD),
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "record.json").write_text(data)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "notes.txt").write_text("")
    records, problems = find_records(tmp_path)
    assert [record.id for record in records] == ["at", "other"]
    assert len(problems) == 2
    assert problems[0].startswith(f"{tmp_path / 'b' / 'record.json'}: not a JSON record")
    assert problems[1].startswith(f"{tmp_path / 'c' / 'record.json'}: unknown record schema 9")
    assert not any("\n" in problem for problem in problems)


def test_no_runs_directory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"^no runs directory at .*runs: run `advbench run` first$"):
        find_records(tmp_path / "runs")


def test_importing_the_package_loads_nothing_heavy_and_nothing_of_ours() -> None:
    code = (
        "import sys, leaderboards;"
        "heavy = {'torch', 'pandas', 'rich', 'matplotlib', 'advbench', 'attacks_pool', 'defenses'};"
        "print(sorted(heavy & set(sys.modules)), 'pydantic' in sys.modules)"
    )
    assert python("-c", code).stdout.strip() == "[] True"
