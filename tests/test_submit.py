"""Runs sent to others: one archive, always the same bytes; what comes back is read with suspicion."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import contents

from advbench.runs.saved import Run
from advbench.verify import Report
from advbench.verify import accept as accepting
from advbench.verify.accept import accept, mark
from leaderboards import (
    RecordError,
    check_run,
    digests_of,
    find_garbage,
    inventory,
    json_bytes,
    pack,
    trust_of,
    unpack,
    write_checksums,
)
from leaderboards.records import archive as module
from leaderboards.records.trust import refutation_of

Call = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def archive(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it is sent."""
    out = tmp_path_factory.mktemp("sent") / "run.zip"
    pack(small_run.path, out)
    return out


def repacked(archive: Path, out: Path, change: Callable[[dict[str, bytes]], object] = lambda _: None) -> Path:
    """The archive with other members, stored as they come."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    return out


def test_the_same_run_gives_the_same_bytes(
    small_run: Run, own_run: Path, archive: Path, tmp_path: Path
) -> None:
    """From another place, at another time, with other permissions; logs and marks stay behind."""
    (own_run / "verified.json").write_text("{}")
    (own_run / "record.json").chmod(0o600)
    (own_run / "model.safetensors").touch()
    names = pack(own_run, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    assert names == sorted(names)
    assert {"record.json", "outcomes.npz", "SHA256SUMS", "run.json", "model.safetensors"} <= set(names)
    assert {f"stages/{stage}.safetensors" for stage in range(3)} <= set(names)
    assert not {"log.jsonl", "verified.json"} & set(names)
    assert {path.name for path in tmp_path.iterdir()} == {"again.zip", "own"}
    (tmp_path / "there").mkdir()
    assert unpack(archive, tmp_path / "there") == names
    assert digests_of(tmp_path / "there") == digests_of(small_run.path)


def test_damaged_runs_are_not_sent(own_run: Path, tmp_path: Path, call: Call) -> None:
    """Nor unfinished ones, nor over a file that is there, nor with files that are none of a run."""
    copy, out = own_run, tmp_path / "out.zip"
    out.write_text("mine")
    with pytest.raises(RecordError, match=r"out\.zip exists already: name another with --out"):
        pack(copy, out)
    assert out.read_text() == "mine"
    out.unlink()
    (copy / "notes.txt").write_text("mine")
    write_checksums(copy, (copy / "record.json").read_bytes())
    with pytest.raises(RecordError, match=r"has 'notes\.txt', which is not part of a run"):
        pack(copy, out)
    (copy / "stages" / "1.safetensors").write_bytes(b"")
    _, error = call("submit", copy, "--out", out, code=2)
    assert "is damaged and cannot be sent: " in error
    assert len(error.splitlines()) == 1
    (copy / "record.json").unlink()
    assert "did not finish, or this is not a run" in call("submit", copy, "--out", out, code=2)[1]
    assert not out.exists()


def test_runs_without_weights_are_not_sent(own_run: Path, tmp_path: Path, call: Call) -> None:
    """A published record, sound as it is: nobody could attack it again."""
    for path in own_run.rglob("*.safetensors"):
        path.unlink()
    _, error = call("submit", own_run, "--out", tmp_path / "out.zip", code=2)
    assert "only a run with its weights can be sent" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.zip").exists()


def test_sent_and_accepted(small_run: Run, tmp_path: Path, call: Call, monkeypatch: Any) -> None:
    """Submit, accept: verified, whole, and there once, however often it is sent."""
    monkeypatch.chdir(tmp_path)
    name = f"{small_run.record.id}.zip"
    assert name in call("submit", small_run.path)[0]
    place = tmp_path / "store" / small_run.record.id
    out, _ = call("accept", name, "--runs-dir", "store")
    assert f"added, re-evaluated, as store/{small_run.record.id}" in out
    assert trust_of(place) == "re-evaluated"
    assert check_run(place).problems == []
    assert digests_of(place) == digests_of(small_run.path)
    mark = json.loads((place / "verified.json").read_text())
    assert mark["sample"]["discordant"] == 0
    assert mark["machine"]["threads"] == 1
    assert [entry.path for entry in inventory(tmp_path / "store")] == [place]


@pytest.fixture
def confirming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification takes seconds: where something else is tested it confirms unseen."""

    def seen(run: Run, *_: Any, **__: Any) -> Report:
        return Report(run.record.id, run.path, "re-evaluated", complete=True)

    monkeypatch.setattr(accepting, "verify_run", seen)


@pytest.mark.usefixtures("confirming")
def test_the_same_run_again(small_run: Run, archive: Path, tmp_path: Path) -> None:
    """It is there once, and marked."""
    assert accept(archive, tmp_path).place == tmp_path / small_run.record.id
    (tmp_path / small_run.record.id / "verified.json").unlink()
    found = accept(archive, tmp_path)
    assert (found.known, found.place) == (True, tmp_path / small_run.record.id)
    assert trust_of(tmp_path / small_run.record.id) == "re-evaluated"
    assert [path.name for path in tmp_path.iterdir()] == [small_run.record.id]


@pytest.mark.usefixtures("confirming")
def test_another_run_of_the_same_name_loses_nothing(small_run: Run, archive: Path, tmp_path: Path) -> None:
    """It keeps its place; the new one stands beside it."""
    own = tmp_path / small_run.record.id
    own.mkdir()
    (own / "record.json").write_text("mine")
    found = accept(archive, tmp_path)
    assert found.place == tmp_path / f"{small_run.record.id}-2"
    assert contents(own) == {"record.json": b"mine"}
    assert trust_of(found.place) == "re-evaluated"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_of_a_refuted_run_is_added(archive: Path, tmp_path: Path, call: Call) -> None:
    """Evidence, exit 1, and not even the runs directory."""

    def better(members: dict[str, bytes]) -> None:
        tree = json.loads(members["record.json"])
        tree["metrics"]["average_robust_accuracy"] = 0.9
        place = tmp_path / "forged"
        for name, data in {**members, "record.json": json_bytes(tree)}.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        write_checksums(place, json_bytes(tree))
        members["record.json"] = json_bytes(tree)
        members["SHA256SUMS"] = (place / "SHA256SUMS").read_bytes()

    sent = repacked(archive, tmp_path / "sent.zip", better)
    out, _ = call("accept", sent, "--runs-dir", tmp_path / "deep" / "store", code=1)
    assert "fault: metrics: average_robust_accuracy is 0.9" in out
    assert "nothing was added" in out
    assert not (tmp_path / "deep").exists()


def _link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("run.json")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def _member(name: str, data: bytes = b"x", **how: Any) -> Callable[[zipfile.ZipFile], object]:
    return lambda archive: archive.writestr(name, data, **how)


ATTACKS: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "above": (_member("../outside"), "contains '../outside', which is not a file of a run"),
    "above, deep": (_member("stages/../../outside"), "which is not a file of a run"),
    "absolute": (_member("/outside"), "contains '/outside', which is not a file of a run"),
    "drive": (_member("C:\\outside"), "which is not a file of a run"),
    "backslash": (_member("stages\\0.safetensors"), "which is not a file of a run"),
    "folder": (_member("stages/"), "which is not a file of a run"),
    "hidden": (_member(".lock"), "contains '.lock', which is not a file of a run"),
    "a mark": (_member("verified.json", b"{}"), "contains 'verified.json', which is not a file of a run"),
    "other name": (_member("stages/x.safetensors"), "which is not a file of a run"),
    "link": (_link, "'run.json' is not a plain file"),
    "twice": (_member("record.json"), "'record.json' is listed twice"),
    "bomb": (
        _member("stages/9.safetensors", bytes(10**7), compress_type=zipfile.ZIP_DEFLATED),
        "'stages/9.safetensors' is compressed or encrypted",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_archives_that_attack(attack: str, archive: Path, tmp_path: Path) -> None:
    """Refused before anything is written."""
    add, said = ATTACKS[attack]
    sent = repacked(archive, tmp_path / "sent.zip", lambda members: members.pop("run.json"))
    with zipfile.ZipFile(sent, "a") as opened:
        add(opened)
    before = contents(tmp_path)
    with pytest.raises(RecordError) as raised:
        accept(sent, tmp_path / "store")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == before
    assert not (tmp_path.parent / "outside").exists()


def test_members_that_claim_too_much(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the archive has, more than may be, too many members, none of the needed ones."""
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        size = opened.getinfo("model.safetensors").file_size
    place = data.rfind(b"model.safetensors") - 46
    # Both sizes, in the central directory alone.
    for offset in (20, 24):
        assert int.from_bytes(data[place + offset : place + offset + 4], "little") == size
        data[place + offset : place + offset + 4] = (2**31).to_bytes(4, "little")
    (tmp_path / "claims.zip").write_bytes(data)
    with pytest.raises(RecordError, match=r"its members claim .* bytes, which is more than possible"):
        accept(tmp_path / "claims.zip", tmp_path / "store")
    sent = repacked(archive, tmp_path / "few.zip", lambda members: members.pop("outcomes.npz"))
    with pytest.raises(RecordError, match=r"it contains no outcomes\.npz"):
        accept(sent, tmp_path / "store")
    for limit, said in (("MOST_TEXT", "bytes, 10 are allowed"), ("MOST_MEMBERS", "a run has 3 at most")):
        monkeypatch.setattr(module, limit, 10 if limit == "MOST_TEXT" else 3)
        with pytest.raises(RecordError, match=said):
            accept(archive, tmp_path / "store")
        monkeypatch.undo()


def test_outcomes_that_unfold_to_too_much(archive: Path, tmp_path: Path) -> None:
    """An npz is compressed: its own directory says how large it becomes, and the record how large it may."""

    def bomb(members: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, clean=np.zeros((3, 10**6), bool), robust=np.zeros((3, 3, 10**6), bool))
        members["outcomes.npz"] = buffer.getvalue()

    sent = repacked(archive, tmp_path / "sent.zip", bomb)
    found = accept(sent, tmp_path / "store")
    assert found.place is None
    assert "bytes of outcomes, the record has no more than" in found.report.faults[0]


@pytest.mark.parametrize("name", ["../evil", ".hidden", "a/b", "x" * 300])
def test_names_that_lead_elsewhere(name: str, archive: Path, tmp_path: Path) -> None:
    """A run's id becomes a directory's name."""

    def renamed(members: dict[str, bytes]) -> None:
        members["record.json"] = json_bytes({**json.loads(members["record.json"]), "id": name})

    sent = repacked(archive, tmp_path / "sent.zip", renamed)
    with pytest.raises(RecordError, match="which is not a valid name of a run"):
        accept(sent, tmp_path / "store")
    assert set(contents(tmp_path)) == {"sent.zip"}


def test_a_stranger_s_code_is_not_imported(
    archive: Path, tmp_path: Path, call: Call, monkeypatch: Any
) -> None:
    """Without --trust; the record's word for a model is only a word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('pwned', 'w')\n")

    def named(members: dict[str, bytes]) -> None:
        tree = json.loads(members["record.json"])
        tree["config"]["model"] = "evil:make"
        members["record.json"] = json_bytes(tree)

    sent = repacked(archive, tmp_path / "sent.zip", named)
    call("accept", sent, "--runs-dir", "store", code=2)
    assert set(contents(tmp_path)) == {"sent.zip", "evil.py"}


def test_what_is_left_by_a_killed_process_can_go(tmp_path: Path) -> None:
    """A half unpacked archive is hidden, and known to gc."""
    (tmp_path / ".accept.2999999999.0123abcd.tmp").mkdir(parents=True)
    (tmp_path / ".accept.2999999999.0123abcd.tmp" / "record.json").write_text("half")
    assert inventory(tmp_path) == []
    assert [garbage.what for garbage in find_garbage(tmp_path)] == ["temporary file"]


def test_marks(own_run: Path) -> None:
    """One counts while record, outcomes and weights are the very files that it names."""
    copy = own_run
    report = Report("id", copy, "re-evaluated")
    assert trust_of(copy) == "self-reported"
    assert mark(report) == "not marked as re-evaluated: that needs every stage and every attack"
    assert trust_of(copy) == "self-reported"
    report.complete = True
    assert mark(report) == "marked as re-evaluated"
    assert trust_of(copy) == "re-evaluated"
    for name in ("record.json", "outcomes.npz", "model.safetensors", "stages/1.safetensors"):
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(before + b" ")
        assert trust_of(copy) == "self-reported"
        (copy / name).unlink()
        assert trust_of(copy) == "self-reported"
        (copy / name).write_bytes(before)
        assert trust_of(copy) == "re-evaluated"
    (copy / "stages" / "7.safetensors").write_bytes(b"")
    assert trust_of(copy) == "self-reported"
    (copy / "stages" / "7.safetensors").unlink()
    for damage in ("", "[]", '{"schema": 2}', "[" * 100_000):
        (copy / "verified.json").write_text(damage)
        assert trust_of(copy) == "self-reported"


def test_two_badges(own_run: Path) -> None:
    """A re-evaluation does not replace the mark of training again; a refutation does, until it is mended."""
    copy = own_run
    seen = Report("id", copy, "re-evaluated", complete=True)
    again = Report("id", copy, "retrained", complete=True)
    assert mark(seen) == "marked as re-evaluated"
    assert mark(again) == "marked as retrained"
    assert mark(seen) == "its mark as retrained stays, which is stronger than re-evaluated"
    assert trust_of(copy) == "retrained"
    again.complete = False
    assert mark(again) == "not marked as retrained: the repetition was not exact"
    seen.faults.append("metrics: invented")
    assert mark(seen) == "its mark as retrained was taken away, and it is marked as refuted"
    assert (trust_of(copy), refutation_of(copy)) == ("refuted", "metrics: invented")
    assert check_run(copy).problems == []
    assert mark(again) == "not marked as retrained: the repetition was not exact"
    assert trust_of(copy) == "refuted"
    again.complete = True
    assert mark(again) == "marked as retrained"
    assert trust_of(copy) == "retrained"
    assert not (copy / "refuted.json").exists()
