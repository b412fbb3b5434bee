"""Records and archives that claim to be larger, or to take longer, than can be, are refused first."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advbench import evaluate_model, load_run
from advbench.cli.main import invoke
from advbench.config.options import protocol_of
from advbench.runs.saved import Run
from advbench.runtime import timeouts
from advbench.verify import accept as accepting
from advbench.verify import attack_again as verifier
from advbench.verify import train_again as retraining
from advbench.verify.accept import accept
from advbench.verify.bounds import check_allocations
from advbench.verify.subject import subject_of
from attacks_pool import InputError
from defenses import registry
from defenses.metadata import parse_parameters
from leaderboards import (
    RecordError,
    check_run,
    json_bytes,
    pack,
    parse_record,
    read_manifest,
    read_outcomes,
    read_record,
    write_checksums,
)
from leaderboards.records.archive import outcomes_size
from leaderboards.records.checksums import digest_of

Captured = pytest.CaptureFixture[str]
Members = dict[str, bytes]
Change = Callable[[dict[str, Any]], object]
UNFILLED = "bytes of weights can fill: it is not built"
MEGABYTE = 10**6
TASKS = [{"text": name, "name": name, "family": "gradient"} for name in ("fgsm", "pgd")]


@pytest.fixture(scope="module")
def archive(brief_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it is sent."""
    out = tmp_path_factory.mktemp("sent") / "run.zip"
    pack(brief_run.path, out)
    return out


def repacked(archive: Path, out: Path, change: Callable[[Members], object]) -> Path:
    """The archive with other members."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    return out


def claiming(points: int) -> Callable[[Members], None]:
    """A record of that many points, with outcomes of that many, or of as many as fit a few megabytes."""

    def change(members: Members) -> None:
        tree = json.loads(members["record.json"])
        for cell in tree["cells"]:
            cell["n"] = points
        members["record.json"] = json_bytes(tree)
        stages, attacks = len(tree["stages"]), len(tree["attacks"])
        small, buffer = min(points, 5 * 10**7 // stages // attacks), io.BytesIO()
        clean, robust = np.zeros((stages, small), bool), np.zeros((stages, attacks, small), bool)
        np.savez_compressed(buffer, clean=clean, robust=robust)
        members["outcomes.npz"] = buffer.getvalue()

    return change


@contextmanager
def little_memory(most: int = 100 * MEGABYTE) -> Iterator[None]:
    """Python and numpy allocate no more than that inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def refused(capsys: Captured, *command: str) -> str:
    """The one line with which a command ends: a user's mistake, exit code 2."""
    capsys.readouterr()
    assert invoke(list(command)) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n")) == ("", 1)
    return found.err


def with_record(run: Run, place: Path, change: Change) -> Path:
    """A copy of the run with its record changed, as whoever forges it may."""
    shutil.copytree(run.path, place)
    tree = run.record.dump()
    change(tree)
    (place / "record.json").write_bytes(json_bytes(tree))
    return place


@pytest.mark.quick("huge")
@pytest.mark.parametrize("points", [10**400, 10**10, 10**7 + 1], ids=["huge", "10^10", "10^7+1"])
def test_more_points_than_there_can_be(points: int, archive: Path, tmp_path: Path, capsys: Captured) -> None:
    sent = repacked(archive, tmp_path / "sent.zip", claiming(points))
    with little_memory():
        assert "cells.0.n" in refused(capsys, "accept", str(sent), "--runs-dir", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("points", [361, 10**5, 10**7])
def test_more_points_than_the_data_set_has(points: int, archive: Path, tmp_path: Path) -> None:
    """Whatever the record says; the outcomes are not unpacked."""
    sent = repacked(archive, tmp_path / "sent.zip", claiming(points))
    with little_memory():
        found = accept(sent, tmp_path / "store")
    assert found.place is None
    assert found.report.faults == [f"clean: on {points} points, the data set has 360"]


def test_images_larger_than_the_data_set_s(archive: Path, tmp_path: Path) -> None:
    """A model would be built for them."""

    def change(members: Members) -> None:
        tree = json.loads(members["record.json"])
        tree["environment"]["data"]["shape"] = [1, 10**6, 10**6]
        members["record.json"] = json_bytes(tree)

    found = accept(repacked(archive, tmp_path / "sent.zip", change), tmp_path / "store")
    assert "images [1, 1000000, 1000000] of 10 classes, the data set has [1, 8, 8]" in found.report.faults[0]


SPECS: dict[str, tuple[Change, str]] = {
    "pixels": (lambda tree: tree["environment"]["data"].update(shape=[1, 60_000, 60_000]), UNFILLED),
    "classes": (lambda tree: tree["environment"]["data"].update(classes=10**9), UNFILLED),
    "width": (
        lambda tree: tree["stages"][-1]["spec"].update(
            defense="mola-router", parameters={"router_width": 10**8}, tasks=TASKS, router_weights={}
        ),
        UNFILLED,
    ),
    "nothing": (
        lambda tree: tree["stages"][-1].update(spec={}),
        "stage 2 cannot be built from its spec: KeyError: 'defense'",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_models_larger_than_their_weights(case: str, brief_run: Run, tmp_path: Path) -> None:
    """Also where no data set is looked at: nothing of that size is made."""
    change, said = SPECS[case]
    with pytest.raises(InputError, match=said):
        load_run(with_record(brief_run, tmp_path / "run", change)).stage(2)


def npz(path: Path, shape: tuple[int, ...], content: bytes = b"\0" * 9) -> Path:
    """Outcomes whose headers say what they like."""
    header = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("clean", "robust", "probes"):
            archive.writestr(f"{name}.npy", member)
    return path


@pytest.mark.parametrize("shape", [(10**10,), (3, 3, 10**12), (-1, -9), (2**40, 2**40)])
def test_headers_that_claim_more_than_the_member_has(shape: tuple[int, ...], tmp_path: Path) -> None:
    with little_memory(MEGABYTE), pytest.raises(RecordError, match="damaged outcomes"):
        read_outcomes(npz(tmp_path / "outcomes.npz", shape))


def test_outcomes_that_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    """A byte of 2 counts twice in a sum of booleans."""
    with pytest.raises(RecordError, match="damaged outcomes"):
        read_outcomes(npz(tmp_path / "outcomes.npz", (3, 3), content=b"\2" * 9))


def test_outcomes_larger_than_any(tmp_path: Path) -> None:
    """Wherever they are read: leaderboards know no data set."""
    with zipfile.ZipFile(tmp_path / "outcomes.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("clean.npy", "robust.npy"):
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(40):
                    member.write(bytes(MEGABYTE))
    with little_memory(MEGABYTE), pytest.raises(RecordError, match="80000000 bytes, 67108864 are allowed"):
        read_outcomes(tmp_path / "outcomes.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes among the files")
def test_pipes_and_devices_are_not_waited_for(brief_run: Run, tmp_path: Path, capsys: Captured) -> None:
    """Whoever opens a pipe waits for its other end; a device may have none."""
    os.mkfifo(tmp_path / "sent.zip")
    runs = str(brief_run.path.parent)
    for file in (tmp_path / "sent.zip", *filter(Path.exists, [Path("/dev/zero")])):
        for command in (["accept", str(file)], ["leaderboard", "--reference", str(file)]):
            assert "is not a plain file" in refused(capsys, *command, "--runs-dir", runs)
    for name in ("outcomes.npz", ".lock"):
        directory = tmp_path / name / "run"
        shutil.copytree(brief_run.path, directory)
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
        assert invoke(["runs", "check", "--runs-dir", str(tmp_path / name)]) == (name == "outcomes.npz")
        assert ("not a plain file" in capsys.readouterr().out) == (name == "outcomes.npz")
        for command in (["runs"], ["leaderboard"]):
            assert invoke([*command, "--runs-dir", str(tmp_path / name)]) == 0
        capsys.readouterr()
    for read in (outcomes_size, digest_of):
        with pytest.raises(RecordError, match="is not a plain file"):
            read(tmp_path / "sent.zip")


def test_files_that_are_too_long_to_be_read(archive: Path, tmp_path: Path, capsys: Captured) -> None:
    """Sparse, so that the test costs nothing; each place that reads a record says so in one line."""
    sent = repacked(
        archive, tmp_path / "sent.zip", lambda members: members.update({"record.json": bytes(17 * 2**20)})
    )
    with little_memory(), pytest.raises(RecordError, match=r"'record\.json' has 17825792 bytes"):
        accept(sent, tmp_path / "store")
    directory = tmp_path / "runs" / "long"
    directory.mkdir(parents=True)
    for name in ("record.json", "run.json", "SHA256SUMS"):
        (directory / name).touch()
        os.truncate(directory / name, 500 * MEGABYTE)
    with little_memory():
        for read in (read_record, read_manifest):
            with pytest.raises(RecordError, match="has 500000000 bytes, 16777216 are allowed"):
                read(directory)
        assert any("500000000 bytes" in line for line in check_run(directory).problems)
        for command in (
            ["leaderboard", "--runs-dir", str(tmp_path / "runs")],
            ["show", str(directory)],
            ["run", "--config", str(directory / "record.json")],
        ):
            assert invoke(command) == 2
            assert "500000000 bytes" in capsys.readouterr().err


LONG = "d" * 60_000
BLOWN: dict[str, tuple[Change, str]] = {
    "name": (lambda tree: tree.update(id="x" * 10**6), "at most 300 characters"),
    "attack": (lambda tree: tree["cells"][0].update(attack="x" * 10**6), "at most 1000 characters"),
    "stage": (lambda tree: tree["cells"][0].update(stage=10**9), "less than or equal to 9999"),
    "passes": (lambda tree: tree["cells"][0].update(forwards=10**30), "less than or equal to"),
    "matrix": (
        lambda tree: (
            tree["stages"][-1].update(index=9999),
            tree.update(attacks=[{**tree["attacks"][0], "text": f"a{number}"} for number in range(20)]),
        ),
        "a matrix of 210000 cells, 100000 are allowed",
    ),
    "faults": (lambda tree: tree.update(cells=[0] * 150_000), "at most 100000 items"),
    "key": (lambda tree: tree.update({"y" * 10**5: 0}), "unknown key"),
    "seed": (lambda tree: tree["config"].update(seed="z" * 10**6), "seed must be int"),
    "defense": (
        lambda tree: tree["config"].update(defense=LONG),
        "defense has a text of 60000 characters, 300 are allowed",
    ),
    "data": (lambda tree: tree["config"].update(dataset=LONG), "dataset has a text of 60000"),
    "fingerprint": (lambda tree: tree["environment"]["data"].update(name=LONG), "data has a text of 60000"),
    "sequence": (lambda tree: tree["config"].update(sequence=[LONG]), "sequence has a text of 60000"),
    "parameter": (
        lambda tree: tree["config"].update(params={"a": [{LONG: 1}]}),
        "params has a text of 60000",
    ),
    "attack's name": (lambda tree: tree["attacks"][0].update(name=LONG), "at most 300 characters"),
    "class": (lambda tree: tree["per_class"][0].update({"class": LONG}), "at most 300 characters"),
    "metric": (lambda tree: tree["metrics"].update({LONG: 1.0}), "at most 300 characters"),
    "flag": (
        lambda tree: tree["audit"]["flags"].append({"code": LONG, "message": "", "evidence": {}}),
        "at most 300 characters",
    ),
}


@pytest.mark.parametrize("case", BLOWN)
def test_records_that_are_blown_up(case: str, brief_run: Run) -> None:
    """One short line, and little memory."""
    change, said = BLOWN[case]
    tree = brief_run.record.dump()
    change(tree)
    text = json.dumps(tree).encode()
    with little_memory(400 * MEGABYTE), pytest.raises(RecordError) as raised:
        parse_record(text, "record.json")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_names_that_honest_records_have(brief_run: Run) -> None:
    """As long as a file's name may be, and every knob of a long attack."""
    tree = brief_run.record.dump()
    text = "attack:" + ",".join(f"knob_{number}=0.004166666666666667" for number in range(30))
    tree["config"].update(dataset="folder:" + "d" * 255, unseen=[text], data_dir="/" + "d" * 4000)
    tree["per_class"][0]["class"] = "c" * 255
    assert parse_record(json.dumps(tree).encode(), "record.json").config["unseen"] == [text]


def test_the_name_of_an_evaluated_model(brief_run: Run, tmp_path: Path) -> None:
    """It is refused before anything is measured."""
    with pytest.raises(InputError, match="model's name has 301 characters, 300 are allowed: --name"):
        evaluate_model(brief_run.model, "digits", name="n" * 301, runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_records_that_nest_too_deep(brief_run: Run) -> None:
    text = json.dumps(brief_run.record.dump()).encode()
    deep = text.replace(b'"params": {', b'"params": {"deep": ' + b"[" * 10**5 + b"]" * 10**5 + b", ", 1)
    assert deep != text
    with pytest.raises(RecordError, match="not a JSON record"):
        parse_record(deep, "record.json")


# Time.


def _busy() -> None:
    while True:
        pass


def _sleeping() -> None:
    while True:
        time.sleep(60)


def _stubborn(caught: type[BaseException] = Exception) -> None:
    while True:
        try:
            time.sleep(60)
        except caught:
            continue


@pytest.mark.quick(r"_sleeping")
@pytest.mark.parametrize("busy", [_busy, _sleeping, _stubborn])
def test_accepting_ends_in_time(
    busy: Callable[[], None],
    archive: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line, and nothing is left."""
    monkeypatch.setattr(verifier, "_remeasure", lambda *_: busy())
    place = tmp_path / "deep" / "store"
    began = time.monotonic()
    said = refused(capsys, "accept", str(archive), "--runs-dir", str(place), "--timeout", "0.8")
    assert time.monotonic() - began < 5
    assert said == f"error: accepting {archive} did not end within 0.8 s (--timeout)\n"
    assert not (tmp_path / "deep").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that ends is a fork of this one")
def test_what_cannot_be_interrupted_leaves_nothing(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, after it has removed what it had unpacked."""
    unpack = accepting.unpack

    def endless(*given: Any) -> None:
        unpack(*given)
        _stubborn(BaseException)

    monkeypatch.setattr(timeouts, "GRACE", 0.2)
    monkeypatch.setattr(accepting, "unpack", endless)
    command = ["accept", str(archive), "--runs-dir", str(tmp_path / "deep" / "store"), "--timeout", "1"]
    process = multiprocessing.get_context("fork").Process(target=invoke, args=(command,))
    process.start()
    process.join(60)
    assert process.exitcode == 2
    said = capfd.readouterr().err
    assert said.endswith("and cannot be interrupted: the process ends\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "deep").exists()


def test_two_thousand_million_steps(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record whose attack would never end: neither verified nor accepted, and one of many runs only."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slowly.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    # So little that no point falls, which would end the search.
    attacks, settings = "pgd:eps=1e-6,steps=3", {"threads": 1, "device": "cpu"}
    made = evaluate_model("slowly:make", attacks=attacks, points=20, surrogate="none", **settings)
    for name in ("record.json", "run.json"):
        tree = json.loads((made.path / name).read_text().replace("steps=3", "steps=2000000000"))
        if name == "record.json":
            tree["protocol"] = protocol_of(tree["config"]["eval"], tree["config"]["points"])
        (made.path / name).write_bytes(json_bytes(tree))
    write_checksums(made.path, (made.path / "record.json").read_bytes())
    pack(made.path, tmp_path / "run.zip")
    for command in (["verify", str(made.path)], ["accept", "run.zip", "--runs-dir", "theirs"]):
        began = time.monotonic()
        assert invoke([*command, "--trust", "--timeout", "1"]) == 2
        assert time.monotonic() - began < 10
        lines = capsys.readouterr().err.splitlines()
        assert "did not end within 1 s (--timeout)" in lines[-1]
        assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "theirs").exists()
    assert not (made.path / "verified.json").exists()


KEEPING = ("air", "ewc", "replay", "si", "lwf", "mola-grad", "mola-router", "lorkd", "mid")
HUGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "width": ("mola-router", {"router_width": 10**8}, "router_width=100000000, "),
    "depth": ("mola-router", {"router_depth": 200}, "router_depth=200 takes more than"),
    "channels": ("lorkd", {"choose": "router", "channels": 10**9}, "channels=1000000000 takes more than"),
    "no size at all": ("mola-router", {"router_width": 10**30}, "cannot be built: "),
}


@pytest.mark.parametrize("case", HUGE)
def test_defenses_far_larger_than_their_classifier(
    case: str, brief_run: Run, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before anything of that size is made, and before training begins."""
    name, given, said = HUGE[case]
    regime = "joint" if name == "lorkd" else "continual"
    params = parse_parameters(registry.resolve(name)[0], name, given)

    def change(tree: dict[str, Any]) -> None:
        tree["config"].update(defense=name, params=params, regime=regime)
        tree.update(regime=regime)

    copy = with_record(brief_run, tmp_path / "run", change)
    # Whoever writes such a record makes everything else in it fit.
    monkeypatch.setattr(retraining, "check_claims", lambda *_: None)
    monkeypatch.setattr(retraining, "check_labels", lambda *_: None)
    with little_memory(400 * MEGABYTE):
        assert said in refused(capsys, "verify", str(copy), "--retrain")


@pytest.mark.quick(r"(at|lorkd|mola-router)")
@pytest.mark.parametrize("name", KEEPING)
def test_honest_defenses_are_within_bounds(name: str, brief_run: Run) -> None:
    """Every stage of those that keep or add something; a rank is cut to what a convolution can have."""
    defense = registry.resolve(name)[0]
    regime = defense.info.regimes[-1]
    config = brief_run.record.config | {"defense": name, "regime": regime}
    config["params"] = parse_parameters(defense, name, {"rank": 10**9} if name == "mola-grad" else {})
    record = brief_run.record.model_copy(update={"config": config, "regime": regime})
    before = torch.get_rng_state()
    check_allocations(subject_of(Run(brief_run.path, record)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_training_again_ends_in_time(
    brief_run: Run, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(retraining.tempfile, "tempdir", None)
    monkeypatch.setattr(retraining, "run_benchmark", lambda **_: _sleeping())
    assert invoke(["verify", str(brief_run.path), "--retrain", "--timeout", "0.8"]) == 2
    assert "did not end within 0.8 s" in capsys.readouterr().err
    assert not list(tmp_path.glob("advbench-verify-*"))


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf"])
def test_limits_that_are_none(given: str, brief_run: Run, archive: Path, capsys: Captured) -> None:
    for command in (["verify", str(brief_run.path)], ["accept", str(archive)]):
        said = refused(capsys, *command, "--timeout", given)
        assert "timeout=" in said
        assert "must be a number of seconds above 0" in said


def test_the_limits_are_in_the_help(capsys: Captured) -> None:
    for command, seconds in (("verify", "21600"), ("accept", "3600")):
        assert invoke([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "--timeout" in out
        assert seconds in out
