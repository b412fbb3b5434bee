"""``advbench runs``: the list, what is damaged, and what may be removed."""

import contextlib
import errno
import functools
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import contents, forked, python
from record_trees import cell, entry, record_tree, stages
from safetensors.numpy import save

from leaderboards import (
    Manifest,
    RecordError,
    check_run,
    find_complete,
    find_garbage,
    find_records,
    find_unfinished,
    hold,
    inventory,
    new_run_directory,
    parse_record,
    read_manifest,
    remove,
    size_of,
    verify_checksums,
    write_bytes,
    write_checksums,
    write_manifest,
    write_outcomes,
    write_record,
)
from leaderboards.boards import cache
from leaderboards.records import store

Call = Callable[..., tuple[str, str]]
STRAY = "2999999999.0123abcd.tmp"
"""The end of a temporary file's name whose process cannot live: no system has so many."""
POINTS, FEW = 20, 10
ATTACKS = {"fgsm:eps=0.2": POINTS, "cw:eps=1.0": FEW}
CONFIG: dict[str, Any] = record_tree({"sequence": list(ATTACKS), "training": list(ATTACKS)})["config"]
WEIGHTS = save({"weight": np.arange(12, dtype=np.float32).reshape(3, 4)})


def outcomes() -> tuple[Any, Any, Any]:
    """What three rows, two attacks and a probe leave right."""
    random = np.random.default_rng(0)
    clean = random.random((3, POINTS)) < 0.9
    robust = clean[:, None] & (random.random((3, 2, POINTS)) < 0.5)
    robust[:, 1, FEW:] = False
    return clean, robust, random.random((1, FEW)) < 0.5


def record_of(name: str) -> dict[str, Any]:
    """A record, as JSON, that fits `outcomes`."""
    clean, robust, probes = outcomes()
    cells = []
    for stage, (right, survivors) in enumerate(zip(clean, robust, strict=True)):
        cells.append(cell(stage, "clean", POINTS, int(right.sum()), int(right.sum())))
        for (attack, n), survived in zip(ATTACKS.items(), survivors, strict=True):
            cells.append(cell(stage, attack, n, int(right[:n].sum()), int(survived.sum())))
    probe = cell(2, "square:eps=0.2", FEW, FEW, int(probes.sum()))
    audit = {"verdict": "ok", "flags": [], "checks": [], "probes": [probe]}
    parts = {"attacks": [entry(text) for text in ATTACKS], "stages": stages([], [], [])}
    return record_tree(CONFIG, id=name, cells=cells, audit=audit, **parts)


def unfinished(runs: Path, name: str, stages: int = 0) -> Path:
    """A run whose process died after so many stages and the pretraining."""
    run = new_run_directory(runs, name)
    # Signed by a process that cannot live.
    (run / ".lock").write_text(f"2999999999 {os.uname().nodename}\n")
    write_manifest(run, Manifest(id=name, kind="run", identity="i", created="", config=CONFIG))
    (run / "log.jsonl").write_text('{"time": 1.0, "kind": "start", "stage": 0}\n')
    (run / "stages").mkdir()
    for stage in range(stages + 1):
        write_bytes(run / "stages" / f"{stage}.safetensors", WEIGHTS)
    return run


def complete(runs: Path, name: str, tree: dict[str, Any] | None = None) -> Path:
    """A finished run; ``tree`` in place of the record that fits it."""
    run = unfinished(runs, name, stages=2)
    write_bytes(run / "model.safetensors", WEIGHTS)
    clean, robust, probes = outcomes()
    write_outcomes(run / "outcomes.npz", clean, robust, probes=probes)
    record = parse_record(tree or record_of(name), name)
    with hold(run):
        write_checksums(run, store.json_bytes(record.dump()))
        write_record(run, record)
    return run


def old(runs: Path, name: str, tree: dict[str, Any] | None = None) -> Path:
    """A run from before there were manifests and checksums."""
    run = complete(runs, name, tree)
    (run / "run.json").unlink()
    (run / "SHA256SUMS").unlink()
    return run


@pytest.fixture
def runs(call: Call) -> Call:
    """Calls ``advbench runs``."""
    return functools.partial(call, "runs")


def cut(path: Path) -> None:
    """Lose the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, place: int = -1) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# The list.


def test_the_list_says_how_far_each_run_came(tmp_path: Path, runs: Call) -> None:
    """Finished, running, unfinished and damaged ones by name, numbers by value; nothing else."""
    complete(tmp_path, "a-10")
    complete(tmp_path, "a-2")
    cut(complete(tmp_path, "b") / "record.json")
    unfinished(tmp_path, "c", stages=1)
    unfinished(tmp_path, "d")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / f".e.{STRAY}").mkdir()
    with hold(tmp_path / "d"):
        out, _ = runs("--runs-dir", tmp_path, "--format", "json")
        table, _ = runs("--runs-dir", tmp_path)
    keys = ("id", "state", "kind", "subject", "dataset", "summary")
    assert [tuple(entry[key] for key in keys) for entry in json.loads(out)] == [
        ("a-2", "complete", "run", "at", "digits", "2 stages, 2 attacks"),
        ("a-10", "complete", "run", "at", "digits", "2 stages, 2 attacks"),
        ("b", "damaged", "run", "at", "digits", "stage 2 of 2"),
        ("c", "unfinished", "run", "at", "digits", "stage 1 of 2"),
        ("d", "running", "run", "at", "digits", "stage 0 of 2"),
    ]
    sizes = {entry["id"]: entry["bytes"] for entry in json.loads(out)}
    assert sizes["c"] == sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")] == [*sizes]
    assert f"b: {tmp_path / 'b' / 'record.json'}: not a JSON record" in table


def test_the_list_of_nothing(tmp_path: Path, runs: Call) -> None:
    """An empty directory is no mistake, a missing one is."""
    assert runs("--runs-dir", tmp_path)[0] == f"no runs in {tmp_path}: advbench run makes one\n"
    _, err = runs("--runs-dir", tmp_path / "none", code=2)
    assert err == f"error: no runs directory at {tmp_path / 'none'}: run `advbench run` first\n"


def test_what_goes_with_the_list_alone_is_refused_elsewhere(tmp_path: Path, runs: Call) -> None:
    """And where runs are kept may be said before or after the word."""
    _, err = runs("--format", "json", "gc", code=2)
    assert "--format is for the list, not for gc" in err
    run = unfinished(tmp_path, "a")
    for arguments in (["--runs-dir", tmp_path, "check"], ["check", "--runs-dir", tmp_path]):
        assert runs(*arguments)[0] == "a: unfinished\n1 run checked, none damaged\n"
    runs("--runs-dir", tmp_path, "gc", "--yes")
    assert not run.exists()


def test_an_evaluated_model_is_a_run_without_training(tmp_path: Path) -> None:
    """It is called so, and weights that were never copied are not missed."""
    tree = record_of("a")
    tree["regime"] = "eval"
    tree["config"] = {**CONFIG, "regime": "eval", "defense": "somebody's", "sequence": []}
    for stage in tree["stages"]:
        stage["weights"] = "not-kept"
    run = old(tmp_path, "a", tree)
    (run / "model.safetensors").unlink()
    (entry,) = inventory(tmp_path)
    assert (entry.kind, entry.subject, entry.summary) == ("eval", "somebody's", "2 attacks")
    assert check_run(run).problems == []


def test_neither_list_nor_check_loads_torch(tmp_path: Path) -> None:
    """They answer at once."""
    complete(tmp_path, "a")
    code = (
        "import sys; from advbench.cli.main import invoke; where = ['runs', '--runs-dir', sys.argv[1]];"
        "print(invoke(where), invoke([*where, 'check']), 'torch' in sys.modules)"
    )
    assert python("-c", code, str(tmp_path)).stdout.splitlines()[-1] == "0 0 False"


def test_the_leaderboard_passes_unfinished_runs_by_and_names_damaged_ones(tmp_path: Path, call: Call) -> None:
    """Strays of killed writers are nothing either."""
    run = complete(tmp_path, "a")
    unfinished(tmp_path, "b")
    new_run_directory(tmp_path, "c")
    cut(complete(tmp_path, "d") / "record.json")
    for place in (run, tmp_path, tmp_path / "b"):
        (place / f".record.json.{STRAY}").write_bytes(b"{")
    records, problems = find_records(tmp_path)
    assert [record.id for record in records] == ["a"]
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'd' / 'record.json'}: not a JSON record: ")
    out, err = call("leaderboard", "--runs-dir", tmp_path, "--format", "json")
    assert (len(json.loads(out)), err) == (1, f"warning: {problem}\n")
    assert "the run did not finish" in call("show", tmp_path / "b", code=2)[1]


def test_the_leaderboard_warns_of_a_record_that_was_edited(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valid as it still is; each time, whatever is kept of a board."""
    monkeypatch.setattr(cache, "WORTHWHILE", 1)
    monkeypatch.setattr(cache, "_SETTLED", -(10**18))
    for name in ("a", "b", "c"):
        complete(tmp_path, name)
    text = (tmp_path / "b" / "record.json").read_text()
    edited = text.replace('"dataset": "digits"', '"dataset": "digits" ')
    assert edited != text
    (tmp_path / "b" / "record.json").write_text(edited)
    (tmp_path / "c" / "SHA256SUMS").write_bytes(b"\xff")
    expected = [
        f"{tmp_path / 'b' / 'record.json'}: {CHANGED}",
        f"{tmp_path / 'c' / 'SHA256SUMS'}: not a list of checksums",
    ]
    records, problems = find_records(tmp_path)
    assert [record.id for record in records] == ["a", "b", "c"]
    assert problems == expected
    for _ in range(2):
        _, err = call("leaderboard", "--runs-dir", tmp_path, "--format", "json")
        assert err.splitlines() == [f"warning: {line}" for line in expected]
    assert (tmp_path / cache.NAME).exists()


# Checks.


def test_whole_runs_are_whole(tmp_path: Path, runs: Call) -> None:
    """By default all of a directory; by name, by directory and by record."""
    run = complete(tmp_path, "a")
    unfinished(tmp_path, "b")
    old(tmp_path, "c")
    out, _ = runs("check", "--runs-dir", tmp_path)
    assert out.splitlines() == [
        "a: whole",
        "b: unfinished",
        "c: no checksums: the run predates them; the rest was checked",
        "3 runs checked, none damaged",
    ]
    for name in ("a", run, run / "record.json"):
        out, _ = runs("check", name, "--runs-dir", tmp_path)
        assert out == "a: whole\n1 run checked, none damaged\n"
    complete(tmp_path, "20250101-at")
    _, err = runs("check", "20250102-at", "--runs-dir", tmp_path, code=2)
    said = f"error: no run '20250102-at' here or in {tmp_path}: did you mean '20250101-at'?"
    assert err == f"{said} (advbench runs lists them)\n"


CHANGED = "changed since the run was finished (its checksum differs)"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (lambda run: cut(run / "model.safetensors"), f"model.safetensors: {CHANGED}"),
    "weights, a bit": (lambda run: flip(run / "stages/1.safetensors"), f"stages/1.safetensors: {CHANGED}"),
    "weights gone": (lambda run: (run / "stages/0.safetensors").unlink(), "stages/0.safetensors: missing"),
    "outcomes cut": (lambda run: cut(run / "outcomes.npz"), f"outcomes.npz: {CHANGED}"),
    "outcomes, a bit": (lambda run: flip(run / "outcomes.npz", 60), f"outcomes.npz: {CHANGED}"),
    "outcomes gone": (lambda run: (run / "outcomes.npz").unlink(), "outcomes.npz: missing"),
    "record cut": (lambda run: cut(run / "record.json"), "record.json: not a JSON record: "),
    "record, a bit": (lambda run: flip(run / "record.json", 4), f"record.json: {CHANGED}"),
    "record gone": (
        lambda run: (run / "record.json").unlink(),
        "record.json: missing, though the run was finished: it has a SHA256SUMS",
    ),
    "manifest cut": (lambda run: cut(run / "run.json"), f"run.json: {CHANGED}"),
    "checksums gone": (lambda run: (run / "SHA256SUMS").unlink(), "SHA256SUMS: missing"),
    "a file more": (lambda run: (run / "x").write_text(""), "x: not listed in SHA256SUMS"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(tmp_path: Path, runs: Call, what: str) -> None:
    """One line each, exit code 1; the others are whole, and nothing is touched."""
    for name in ("a", "b"):
        complete(tmp_path, name)
    damage, said = DAMAGE[what]
    damage(tmp_path / "b")
    before = contents(tmp_path)
    out, err = runs("check", "--runs-dir", tmp_path, code=1)
    lines = out.splitlines()
    assert (lines[0], lines[-1], err) == ("a: whole", "2 runs checked, 1 damaged", "")
    assert any(line.startswith(f"b: damaged: {said}") for line in lines)
    assert contents(tmp_path) == before
    assert runs("--runs-dir", tmp_path, "gc", "--yes")[0] == f"nothing to remove in {tmp_path}\n"
    assert contents(tmp_path) == before


def test_a_record_without_any_weights_is_whole(tmp_path: Path, runs: Call) -> None:
    """It was published so, and it is said; where some are there, the others are missed."""
    run = complete(tmp_path, "a")
    weights = sorted(run.rglob("*.safetensors"))
    kept = weights[0].read_bytes()
    for path in weights:
        path.unlink()
    out, _ = runs("check", "--runs-dir", tmp_path)
    assert out == "a: without weights\n1 run checked, none damaged\n"
    weights[0].write_bytes(kept)
    out, _ = runs("check", "--runs-dir", tmp_path, code=1)
    assert out.count(": missing") == len(weights) - 1


def test_a_run_killed_just_before_its_record_is_unfinished(tmp_path: Path) -> None:
    """Checksums stand already and checkpoints still: it can be gone on with, and is not cleared away."""
    run = complete(tmp_path, "a")
    (run / "record.json").unlink()
    (run / "checkpoint").mkdir()
    found = check_run(run)
    assert (found.problems, found.notes) == ([], ["unfinished"])
    assert find_unfinished(tmp_path, "i") == [run]
    assert find_garbage(tmp_path) == []


def lower(place: dict[str, Any], key: str) -> None:
    """One point less."""
    place[key] -= 1


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "robust": (
        lambda tree: lower(tree["cells"][4], "robust"),
        "record.json: stage 1, attack fgsm:eps=0.2: clean_correct 17 and robust 7, "
        "the stored outcomes have 17 and 8",
    ),
    "clean of a part": (
        lambda tree: lower(tree["cells"][2], "clean_correct"),
        "record.json: stage 0, attack cw:eps=1.0: clean_correct ",
    ),
    "clean": (
        lambda tree: tree["cells"][3].update(clean_correct=16, robust=16),
        "record.json: stage 1, attack clean: clean_correct 16 and robust 16, the stored outcomes have 17 and",
    ),
    "points": (
        lambda tree: [one.update(n=21) for one in tree["cells"] if one["n"] == POINTS],
        "outcomes.npz: robust has shape (3, 2, 20), the record (3, 2, 21) (stages, attacks, points)",
    ),
    "stages": (
        lambda tree: tree["stages"].pop(),
        "outcomes.npz: robust has shape (3, 2, 20), the record (2, 2, 20)",
    ),
    "a cell": (lambda tree: tree["cells"].pop(), "record.json: no cell for stage 2, attack cw:eps=1.0"),
    "another stage": (
        lambda tree: tree["cells"][-1].update(stage=7),
        "record.json: a cell names stage 7, which is not among the stages",
    ),
    "a probe": (
        lambda tree: lower(tree["audit"]["probes"][0], "robust"),
        "record.json: probe square:eps=0.2",
    ),
    "probes": (
        lambda tree: tree["audit"]["probes"][0].update(n=11),
        "outcomes.npz: probes have shape (1, 10), the record (1, 11)",
    ),
    "weights": (
        lambda tree: tree["stages"][0].update(weights="stages/9.safetensors"),
        "stages/9.safetensors",
    ),
    "another run": (lambda tree: tree.update(id="other"), "run.json: belongs to run 'a', the record to 'oth"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_record_that_does_not_fit_its_outcomes_is_found(tmp_path: Path, what: str) -> None:
    """Though every checksum is right: counts are compared with the points themselves."""
    change, said = MISFITS[what]
    tree = record_of("a")
    change(tree)
    run = complete(tmp_path, "a", tree)
    assert verify_checksums(run) == []
    problems = check_run(run).problems
    assert any(line.startswith(said) for line in problems), problems


def test_a_record_of_a_newer_schema_is_told_and_left_alone(tmp_path: Path, runs: Call) -> None:
    """Another version wrote it, and can read it."""
    run = complete(tmp_path, "a")
    data = json.dumps({"schema": 2, "new": []}).encode()
    write_checksums(run, data)
    write_bytes(run / "record.json", data)
    newer = unfinished(tmp_path, "b")
    write_bytes(newer / "run.json", b'{"schema": 2}')
    before = contents(tmp_path)
    out, _ = runs("check", "--runs-dir", tmp_path, code=1)
    assert out.splitlines() == [
        "a: damaged: record.json: unknown record schema 2: this version reads schema 1",
        "b: damaged: run.json: unknown run schema 2: this version reads schema 1",
        "2 runs checked, 2 damaged",
    ]
    assert find_complete(tmp_path, "i") == []
    runs("--runs-dir", tmp_path, "gc", "--yes")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"\xff" * 40)])
@pytest.mark.parametrize("name", ["outcomes.npz", "stages/1.safetensors", "model.safetensors", "record.json"])
def test_without_checksums_the_rest_is_checked(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    """Files of an old run that are cut, gone or nonsense are found all the same."""
    run = old(tmp_path, "a")
    assert check_run(run).problems == []
    damage(run / name)
    found = check_run(run)
    if name == "record.json" and not (run / name).exists():
        assert found.notes == ["unfinished"]
    else:
        assert len(found.problems) == 1
        assert name in found.problems[0]


# Clearing up.


def clutter(runs: Path) -> set[str]:
    """A directory with something of everything; the names of what may go."""
    whole = complete(runs, "complete")
    (whole / f".outcomes.npz.{STRAY}").write_bytes(b"half")
    (whole / "checkpoint").mkdir()
    (whole / "checkpoint" / "piece").write_bytes(b"piece")
    cut(complete(runs, "damaged") / "record.json")
    (complete(runs, "lost") / "record.json").unlink()
    old(runs, "old")
    unfinished(runs, "unfinished", stages=1)
    unfinished(runs, "held")
    write_bytes(unfinished(runs, "broken") / "run.json", b"{")
    new_run_directory(runs, "made-just-now")
    (new_run_directory(runs, "made-and-killed") / ".lock").write_text(f"2999999999 {os.uname().nodename}\n")
    (new_run_directory(runs, "made-elsewhere") / ".lock").write_text("2999999999 another-machine\n")
    for name in ("log-only", "log-of-others", "log-and-stages", "empty", "photos"):
        (runs / name).mkdir()
    log = '{"time": 1.0, "kind": "start", "stage": 0}\n'
    (runs / "log-only" / "log.jsonl").write_text(log)
    (runs / "log-of-others" / "log.jsonl").write_text('{"message": "hello"}\n')
    (runs / "log-and-stages" / "log.jsonl").write_text(log)
    (runs / "log-and-stages" / "stages").mkdir()
    (runs / "photos" / f".cat.png.{STRAY}").write_bytes(b"")
    (runs / f".shared.{STRAY}").write_bytes(b"half")
    (runs / f".removed.{STRAY}").mkdir()
    (runs / f".shared.{os.getpid()}.0123abcd.tmp").write_bytes(b"being written")
    (runs / "link").symlink_to(unfinished(runs.parent / "other", "elsewhere"), target_is_directory=True)
    strays = {f"complete/.outcomes.npz.{STRAY}", f".shared.{STRAY}", f".removed.{STRAY}"}
    return strays | {"complete/checkpoint", "unfinished", "made-and-killed", "log-only", "empty"}


def test_only_what_is_provably_unfinished_goes(tmp_path: Path, runs: Call) -> None:
    """Nothing that has a record, that is held, that has no manifest, or that is not ours."""
    place = tmp_path / "runs"
    expected = clutter(place)
    before = contents(tmp_path)
    with hold(place / "held"):
        assert {str(garbage.path.relative_to(place)) for garbage in find_garbage(place)} == expected
        out, err = runs("gc", "--yes", "--runs-dir", place)
    assert err == ""
    assert {line.split()[-1] for line in out.splitlines()[1:-2]} == expected
    after = contents(tmp_path)
    for found in (before, after):
        found.pop("runs/held/.lock")
    gone = {name for name in before if any(Path(name).is_relative_to(f"runs/{one}") for one in expected)}
    assert after == {name: data for name, data in before.items() if name not in gone}
    # A second time there is nothing left, but for the run that was held.
    assert [garbage.path.name for garbage in find_garbage(place)] == ["held"]


def test_without_a_terminal_nothing_goes_unless_told(
    tmp_path: Path, runs: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists, says so, and leaves all as it is."""
    unfinished(tmp_path, "a", stages=1)
    before = contents(tmp_path)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        out, err = runs("gc", "--runs-dir", tmp_path, code=2)
    assert "unfinished run  a" in out
    assert err == "error: nothing was removed: no terminal to ask for confirmation; use --yes\n"
    assert contents(tmp_path) == before


def test_at_a_terminal_it_asks(tmp_path: Path, runs: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """No is what it takes for an answer, unless it is told yes."""
    pty = pytest.importorskip("pty")
    run = unfinished(tmp_path, "a")
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0) as keys, open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        for answer, kept in {"n": True, "": True, "y": False}.items():
            keys.write(f"{answer}\n".encode())
            out, err = runs("gc", "--runs-dir", tmp_path)
            assert err == ""
            assert run.exists() is kept
            assert ("nothing was removed" in out) is kept


def test_what_is_taken_or_finished_meanwhile_stays(tmp_path: Path) -> None:
    """Between the list and the removal a resume began, a run was finished, or another one cleared up."""
    for name in ("resumed", "finished", "gone"):
        unfinished(tmp_path, name)
    found = {garbage.path.name: garbage for garbage in find_garbage(tmp_path)}
    assert sorted(found) == ["finished", "gone", "resumed"]
    shutil.rmtree(tmp_path / "finished")
    complete(tmp_path, "finished")
    shutil.rmtree(tmp_path / "gone")
    with hold(tmp_path / "resumed"):
        assert [remove(found[name]) for name in sorted(found)] == [False, False, False]
        before = contents(tmp_path)
    assert check_run(tmp_path / "finished").problems == []
    assert contents(tmp_path) == before


def test_a_resume_and_a_removal_at_one_moment(tmp_path: Path) -> None:
    """Either the run is whole, or it has gone and the resume says so; never something between."""
    said: list[str] = []

    def resume(run: Path, both: threading.Barrier) -> None:
        both.wait()
        try:
            with hold(run):
                said.append(f"{read_manifest(run).id} with {len(os.listdir(run / 'stages'))}")
        except RecordError as error:
            said.append(str(error))

    for number in range(20):
        run = unfinished(tmp_path, f"run-{number}", stages=1)
        (garbage,) = [one for one in find_garbage(tmp_path) if one.path == run]
        both = threading.Barrier(2)
        thread = threading.Thread(target=resume, args=(run, both))
        thread.start()
        both.wait()
        removed = remove(garbage)
        thread.join()
        busy = f"run run-{number} is being written by "
        allowed = (f"run-{number} with 2", f"no run directory at {run}", busy)
        assert said[-1].startswith(allowed)
        assert run.exists() is not removed
        shutil.rmtree(run, ignore_errors=True)
    assert len(said) == 20
    assert os.listdir(tmp_path) == []


def test_runs_made_while_another_process_clears_up_lose_nothing(tmp_path: Path) -> None:
    """A directory is signed as it is made, so that it is never taken for an abandoned one."""
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()

    def clear_up() -> None:
        while not stop.is_set():
            ready.set()
            for one in find_garbage(tmp_path):
                remove(one)
            for one in inventory(tmp_path):
                size_of(one.path)

    other = forked(clear_up)
    assert ready.wait(60)
    with contextlib.ExitStack() as stack:
        for number in range(60):
            run = new_run_directory(tmp_path, "at")
            stack.enter_context(hold(run))
            write_manifest(run, Manifest(id=f"{number}", kind="run", identity="i", created="", config={}))
        stop.set()
        other.join(60)
        made = sorted(int(read_manifest(run).id) for run in tmp_path.iterdir())
    assert (other.exitcode, made) == (0, list(range(60)))


def test_what_cannot_be_removed_is_one_line(
    tmp_path: Path, runs: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2; nothing is half gone."""
    unfinished(tmp_path, "a")
    before = contents(tmp_path)

    def refuse(self: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    _, err = runs("gc", "--yes", "--runs-dir", tmp_path, code=2)
    assert err == f"error: cannot remove {tmp_path / 'a'}: Read-only file system\n"
    (tmp_path / "a" / ".lock").write_bytes(before["a/.lock"] or b"")
    assert contents(tmp_path) == before
