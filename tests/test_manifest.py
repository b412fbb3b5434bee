"""Manifest, lock and checksums of a run, and what faults of the disk and of other processes do to them."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import forked, here, together

from leaderboards import (
    Manifest,
    RecordError,
    RunBusyError,
    find_garbage,
    find_records,
    find_unfinished,
    hold,
    inventory,
    is_held,
    new_run_directory,
    read_manifest,
    verify_checksums,
    write_bytes,
    write_checksums,
    write_manifest,
)
from leaderboards.records import lock, store

CHANGED = "changed since the run was finished (its checksum differs)"
STRAY = "2999999999.0123abcd.tmp"
"""The end of a temporary file's name whose process cannot live: no system has so many."""
TREE: dict[str, Any] = {
    "schema": 1,
    "id": "at",
    "kind": "run",
    "identity": "ab" * 32,
    "created": "2025-01-02T03:04:05+00:00",
    "config": {"defense": "at", "sequence": ["fgsm", "pgd"], "regime": "continual", "lr": 0.1 + 0.2},
    "more": {},
}


def manifest(**changes: Any) -> Manifest:
    """A manifest of an unfinished run."""
    return Manifest.model_validate(TREE | changes)


def encoded(**changes: Any) -> bytes:
    """The text of a manifest."""
    return json.dumps(TREE | changes).encode()


def new(runs: Path, name: str, **changes: Any) -> Path:
    """An unfinished run of a process that has died."""
    path = new_run_directory(runs, name)
    write_manifest(path, manifest(id=name, **changes))
    return path


def refusal(run: Path) -> str:
    """The one line of a manifest that is refused."""
    with pytest.raises(RecordError) as caught:
        read_manifest(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_manifest_round_trips(tmp_path: Path) -> None:
    """A manifest is read as it was written, under the keys that the file shows."""
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert json.loads((tmp_path / "run.json").read_bytes()) == TREE


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a JSON manifest"),
        (b"{", "not a JSON manifest"),
        (b"\xff\xfe\x00", "not a JSON manifest"),
        (b"[" * 100_000, "not a JSON manifest"),
        (b"[]", "a manifest is a JSON object, not a list"),
        (encoded(schema=2, new=1), "unknown run schema 2: this version reads schema 1"),
        (encoded(schema="1"), 'unknown run schema "1": this version reads schema 1'),
        (encoded(schema=True), "unknown run schema true"),
        (b"{}", "unknown run schema null"),
        (encoded(new=1), "unknown key 'new'"),
        (encoded(kind="walk"), "key 'kind': "),
        (encoded(config=[1]), "key 'config': "),
        (encoded().replace(b'"identity"', b'"identify"'), "missing key 'identity' (and 1 more)"),
    ],
)
def test_a_damaged_or_newer_manifest_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    """It names the file and what is wrong, and is left as it is."""
    (tmp_path / "run.json").write_bytes(data)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'run.json'}: {said}")
    assert (tmp_path / "run.json").read_bytes() == data


def test_no_damage_to_a_manifest_is_a_traceback(tmp_path: Path) -> None:
    """Cut anywhere, or a bit flipped anywhere: one line, or a manifest whose text has changed."""
    whole = write_manifest(tmp_path, manifest()).read_bytes()
    for length in range(0, len(whole) - 1, 3):
        (tmp_path / "run.json").write_bytes(whole[:length])
        refusal(tmp_path)
    for place in range(0, len(whole), 2):
        flipped = bytes([whole[place] ^ (1 << place % 8)])
        (tmp_path / "run.json").write_bytes(whole[:place] + flipped + whole[place + 1 :])
        with contextlib.suppress(RecordError):
            assert isinstance(read_manifest(tmp_path), Manifest)
    (tmp_path / "run.json").unlink()
    assert refusal(tmp_path).startswith(f"no manifest at {tmp_path / 'run.json'}: ")


# Who writes a run.


def test_one_holds_a_run_and_another_hears_of_it(tmp_path: Path) -> None:
    """Also within one process; an unfinished run keeps the file, a finished one does not."""
    run = new(tmp_path, "at")
    assert not is_held(run)
    with hold(run):
        assert is_held(run)
        with pytest.raises(
            RunBusyError, match=rf"^run at is being written by process {os.getpid()} on \S+: wait for it or"
        ), hold(run):  # fmt: skip
            pass
        assert is_held(run)
    assert not is_held(run)
    assert (run / ".lock").exists()
    with hold(run):
        write_bytes(run / "record.json", b"{}")
    assert sorted(os.listdir(run)) == ["record.json", "run.json"]


def test_a_holder_that_is_killed_lets_go(tmp_path: Path) -> None:
    """The message names the process while it lives; after SIGKILL nothing needs clearing up."""
    run = new(tmp_path, "at")
    holds = multiprocessing.get_context("fork").Event()

    def keep() -> None:
        with hold(run):
            holds.set()
            signal.pause()

    other = forked(keep)
    assert holds.wait(60)
    assert is_held(run)
    assert [entry.state for entry in inventory(tmp_path)] == ["running"]
    assert find_unfinished(tmp_path, TREE["identity"]) == []
    with pytest.raises(RunBusyError, match=f"by process {other.pid} on "), hold(run):
        pass
    other.kill()
    other.join(60)
    assert not is_held(run)
    assert find_unfinished(tmp_path, TREE["identity"]) == [run]
    with hold(run):
        assert is_held(run)


def test_looking_keeps_no_one_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever only looks whether a run is held has the lock for an instant, and is waited for."""
    fcntl = pytest.importorskip("fcntl")
    run = new(tmp_path, "at")
    waits: list[float] = []
    with (run / ".lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        assert not is_held(run)

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                fcntl.flock(looked_at, fcntl.LOCK_UN)

        monkeypatch.setattr(lock.time, "sleep", wait)
        with hold(run):
            assert is_held(run)
    assert len(waits) == 3


def test_a_lock_that_is_removed_and_made_again_is_still_one(tmp_path: Path) -> None:
    """Four processes take turns on a finished run, whose lock file goes each time: no two at once."""
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "count").write_text("0")

    def add(_: int) -> None:
        done = 0
        while done < 25:
            with contextlib.suppress(RunBusyError), hold(tmp_path):
                number = int((tmp_path / "count").read_text())
                (tmp_path / "count").write_text(str(number + 1))
                done += 1

    together(4, add)
    assert (tmp_path / "count").read_text() == "100"
    assert not (tmp_path / ".lock").exists()


def test_a_run_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    """One line, and nothing is made."""
    with pytest.raises(RecordError, match=r"^no run directory at .*none$"), hold(tmp_path / "none"):
        pass
    assert not is_held(tmp_path / "none")
    assert os.listdir(tmp_path) == []


# Checksums.


def finished(run: Path) -> Path:
    """Files of a finished run, with their checksums."""
    (run / "stages").mkdir(parents=True)
    (run / "checkpoint").mkdir()
    for name in ("model.safetensors", "stages/1.safetensors", "outcomes.npz", "run.json", "log.jsonl"):
        (run / name).write_bytes(name.encode())
    (run / "checkpoint" / "piece").write_bytes(b"piece")
    (run / f".model.safetensors.{STRAY}").write_bytes(b"half")
    write_checksums(run, b"the record")
    write_bytes(run / "record.json", b"the record")
    return run


def test_checksums_are_those_of_the_system_program(tmp_path: Path) -> None:
    """``sha256sum -c`` accepts them, names with a backslash or a line break too."""
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum here")
    run = finished(tmp_path / "run")
    (run / "a\\b\nc").write_bytes(b"odd")
    write_checksums(run, b"the record")
    command = ["sha256sum", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count(": OK"), done.stderr) == (0, 6, "")
    assert verify_checksums(run) == []
    (run / "a\\b\nc").write_bytes(b"other")
    assert verify_checksums(run) == [f"'a\\\\b\\nc': {CHANGED}"]


def test_every_changed_missing_or_additional_file_is_one_line(tmp_path: Path) -> None:
    """What grows until the end, and what is temporary, is no part of a finished run."""
    run = finished(tmp_path / "run")
    (run / "log.jsonl").write_bytes(b"more")
    shutil.rmtree(run / "checkpoint")
    assert verify_checksums(run) == []
    weights = (run / "stages" / "1.safetensors").read_bytes()
    (run / "stages" / "1.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (run / "model.safetensors").write_bytes(b"model")
    (run / "outcomes.npz").unlink()
    (run / "stages" / "2.safetensors").write_bytes(b"")
    assert verify_checksums(run) == [
        f"model.safetensors: {CHANGED}",
        "outcomes.npz: missing",
        f"stages/1.safetensors: {CHANGED}",
        "stages/2.safetensors: not listed in SHA256SUMS",
    ]


def test_damaged_checksums_are_told(tmp_path: Path) -> None:
    """Cut, without the record, no text; and a list from a stranger leads nowhere else."""
    run = finished(tmp_path / "run")
    sums = run / "SHA256SUMS"
    whole = sums.read_bytes()
    sums.write_bytes(whole[:40])
    assert verify_checksums(run)[:2] == [
        "SHA256SUMS: line 1 is not a checksum of a file inside the run",
        "SHA256SUMS: record.json is not listed",
    ]
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("../secret", str(tmp_path / "secret"), "stages/../../secret"):
        sums.write_bytes(whole + f"{'0' * 64}  {name}\n".encode())
        assert verify_checksums(run) == ["SHA256SUMS: line 6 is not a checksum of a file inside the run"]
    sums.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match=r"SHA256SUMS: not a list of checksums$"):
        verify_checksums(run)
    sums.unlink()
    with pytest.raises(RecordError, match=r"^no checksums at .*: the run predates them$"):
        verify_checksums(run)


# Faults.


def test_a_writer_killed_in_the_middle_matters_to_no_one(tmp_path: Path) -> None:
    """SIGKILL between writing and renaming: the old file, and a stray that no reader sees."""
    run = new(tmp_path, "at")

    def killed(path: Path) -> None:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_bytes(path, b"new")

    for path in (run / "run.json", run / "record.json", tmp_path / "file"):
        other = forked(killed, path)
        other.join(60)
        assert other.exitcode == -signal.SIGKILL
    strays = sorted(path.name.split(".")[1] for path in tmp_path.rglob(".*.tmp"))
    assert strays == ["file", "record", "run"]
    assert [(entry.id, entry.state, entry.problem) for entry in inventory(tmp_path)] == [
        ("at", "unfinished", "")
    ]
    assert read_manifest(run).id == "at"
    assert find_records(tmp_path) == ([], [])
    write_checksums(run, b"{}")
    assert (run / "SHA256SUMS").read_text("utf-8").count("\n") == 2


def test_the_clock_decides_nothing(tmp_path: Path) -> None:
    """Times of files and of creation run backwards: the order is that of names, numbers by value."""
    names = ["20250101-000000-at-s0", "20250101-000000-at-s0-2", "20250101-000000-at-s0-10", "20250102-at"]
    for year, name in zip((2040, 2030, 2020, 1975), names, strict=True):
        run = new(tmp_path, name, created=f"{year}-01-01T00:00:00+00:00")
        for path in (run, *run.iterdir()):
            os.utime(path, (year * 1000, (3000 - year) * 1_000_000))
    assert [path.name for path in find_unfinished(tmp_path, TREE["identity"])] == names
    assert [entry.id for entry in inventory(tmp_path)] == names


def test_eight_processes_write_into_one_directory(tmp_path: Path) -> None:
    """Each gets its own run and all its files; a file that all write is one of theirs, whole."""

    def write(number: int) -> None:
        for turn in range(5):
            run = new_run_directory(tmp_path, "at")
            with hold(run):
                made = {"identity": "i", "config": {}, "more": {"by": [number, turn]}}
                write_manifest(run, manifest(id=run.name, **made))
                write_bytes(run / "big", bytes([number]) * 100_000)
                write_bytes(tmp_path / "shared", bytes([number]) * 100_000)

    together(8, write)
    runs = find_unfinished(tmp_path, "i")
    assert [run.name for run in runs] == ["at", *(f"at-{number}" for number in range(2, 41))]
    made = [read_manifest(run) for run in runs]
    assert [one.id for one in made] == [run.name for run in runs]
    assert sorted(one.more["by"] for one in made) == [[n, turn] for n in range(8) for turn in range(5)]
    for run, one in zip(runs, made, strict=True):
        assert (run / "big").read_bytes() == bytes([one.more["by"][0]]) * 100_000
    shared = (tmp_path / "shared").read_bytes()
    assert len(shared) == 100_000
    assert set(shared) == {shared[0]}
    assert not list(tmp_path.rglob(".*.tmp"))


def on_a_disk_of_its_own(tmp_path: Path, code: str) -> list[str]:
    """What ``code``, after `FAULTS`, prints in a new process whose ``sys.argv[1]`` is a small memory disk."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        pytest.skip("unshare and mount are needed to make a small disk")
    mount = tmp_path / "disk"
    mount.mkdir()
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" || exit 77; shift 2; exec "$@"'
    command = [
        *["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"],
        script,
        "sh",
        "size=256k",
        str(mount),
    ]
    command += [sys.executable, "-c", FAULTS + code, str(mount)]
    done = subprocess.run(command, env=here(), capture_output=True, text=True, timeout=120, check=False)
    if "import" not in done.stderr and (done.returncode == 77 or "unshare" in done.stderr):
        pytest.skip(f"no memory disk can be mounted here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


FAULTS = """
import os, pathlib, subprocess, sys, numpy, leaderboards as L
runs = pathlib.Path(sys.argv[1])
def said(call, *arguments, **more):
    try:
        call(*arguments, **more)
        print("done")
    except L.RecordError as error:
        print(str(error).replace(str(runs), "RUNS"))
def held(run):
    with L.hold(run):
        pass
def made():
    run = L.new_run_directory(runs, "at")
    L.write_manifest(run, L.Manifest(id="at", kind="run", identity="i", created="", config={}))
    return run
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """What was there stays whole, nothing half-written is left, and clearing up still works."""
    lines = on_a_disk_of_its_own(
        tmp_path,
        """
run = made()
L.write_bytes(run / "file", b"old")
(runs / "filler").write_bytes(bytes(os.statvfs(runs).f_bavail * os.statvfs(runs).f_frsize))
before = sorted(os.listdir(run))
said(L.write_bytes, run / "file", bytes(5000))
said(L.write_outcomes, run / "outcomes.npz", numpy.ones((2, 9), bool), numpy.ones((2, 1, 9), bool))
said(L.write_checksums, run, b"{}")
said(L.write_manifest, run, L.read_manifest(run).model_copy(update={"config": {"a": "b" * 5000}}))
said(held, run)
said(L.new_run_directory, runs, "at")
print((run / "file").read_bytes(), L.read_manifest(run).id, sorted(os.listdir(run)) == before)
print(sorted(os.listdir(runs)), [L.remove(one) for one in L.find_garbage(runs)], sorted(os.listdir(runs)))
""",
    )
    full = "No space left on device"
    assert lines == [
        f"cannot write RUNS/at/file: {full}",
        f"cannot write RUNS/at/outcomes.npz: {full}",
        f"cannot write RUNS/at/SHA256SUMS: {full}",
        f"cannot write RUNS/at/run.json: {full}",
        "done",
        f"cannot create a run in RUNS: {full}",
        "b'old' at True",
        "['at', 'filler'] [True] ['filler']",
    ]


def test_a_read_only_runs_directory_is_one_line(tmp_path: Path) -> None:
    """Reading goes on; whatever writes says so and changes nothing."""
    lines = on_a_disk_of_its_own(
        tmp_path,
        """
run = made()
subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)
said(L.new_run_directory, runs, "at")
said(L.write_bytes, run / "file", b"new")
said(L.write_checksums, run, b"{}")
said(held, run)
(garbage,) = L.find_garbage(runs)
said(L.remove, garbage)
print([(entry.id, entry.state) for entry in L.inventory(runs)], L.check_run(run))
""",
    )
    refused = "Read-only file system"
    assert lines == [
        f"cannot create a run in RUNS: {refused}",
        f"cannot write RUNS/at/file: {refused}",
        f"cannot write RUNS/at/SHA256SUMS: {refused}",
        f"cannot lock run RUNS/at: {refused}",
        f"cannot lock run RUNS/at: {refused}",
        "[('at', 'unfinished')] Findings(problems=[], notes=['unfinished'])",
    ]


def test_a_directory_cleared_away_as_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was empty for a moment; from then on it is signed."""
    claim = store.claim
    taken: list[Path] = []

    def clear_away(run: Path) -> None:
        if not taken:
            taken.append(run)
            run.rmdir()
        claim(run)

    monkeypatch.setattr(store, "claim", clear_away)
    run = new_run_directory(tmp_path, "at")
    assert (run, taken) == (tmp_path / "at", [tmp_path / "at"])
    assert lock.signature(run) == (os.getpid(), os.uname().nodename)
    assert find_garbage(tmp_path) == []


def test_a_disk_that_fills_while_a_run_is_made_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is free again."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "_sign", fail)
    with pytest.raises(RecordError, match=r"^cannot create a run in .*: No space left on device$"):
        new_run_directory(tmp_path, "at")
    assert os.listdir(tmp_path) == []
