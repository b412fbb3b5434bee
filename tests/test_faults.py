"""What goes wrong around a run: it says so in one line, and nothing that was finished is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import few_probes
from torch import Tensor, nn

import advbench.runs.directory
from advbench import load_run, run
from advbench.cli.main import invoke
from advbench.runs.saved import Run
from advbench.runtime.events import Event
from advbench.runtime.failures import RunFailedError
from advbench.runtime.timeouts import AttackTimeoutError, limited
from attacks_pool import AttackInfo, pool
from attacks_pool.metadata import Knob
from defenses import AT, DefenseInfo, Stage, registry
from leaderboards import comparable, find_records

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]
TINY: dict[str, Any] = {
    "sequence": "fgsm,gaussian-noise",
    "unseen": "none",
    "epochs": 2,
    "points": 16,
    "set": {"pretrain.epochs": 1, "batch_size": 700},
    "threads": 1,
    "device": "cpu",
}
COMMAND = ["run", "--sequence", "fgsm,gaussian-noise", "--unseen", "none", "--epochs", "2", "--points", "16"]
COMMAND += ["--set", "pretrain.epochs=1", "--set", "batch_size=700", "--threads", "1", "--device", "cpu"]


class Stop(BaseException):
    """Stands for the death of a process."""


@pytest.fixture(autouse=True, scope="module")
def _few_probes() -> Iterator[None]:
    """None of these tests is about what an audit finds."""
    with few_probes():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbed."""
    return run("at", runs_dir=tmp_path_factory.mktemp("whole"), **TINY)


def same(first: Path, second: Path) -> None:
    """Equal records, weights and outcomes."""
    assert comparable(load_run(first).record) == comparable(load_run(second).record)
    for name in ("model.safetensors", "outcomes.npz"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def stop_at(kind: str, stage: int = 0, epoch: int = 0) -> Callable[[Event], None]:
    """A listener that stops the run at its first such event."""

    def listen(event: Event) -> None:
        if event.kind == kind and event.stage >= stage and event.epoch >= epoch:
            raise Stop

    return listen


def stopped(runs_dir: Path, kind: str, stage: int, epoch: int = 0, **more: Any) -> Path:
    """A run that died at its first event of a kind in a stage."""
    with pytest.raises(Stop):
        run("at", runs_dir=runs_dir, **{**TINY, **more}, listeners=[stop_at(kind, stage, epoch)])
    (directory,) = (path for path in runs_dir.iterdir() if not (path / "record.json").exists())
    return directory


def heard(**options: Any) -> tuple[Run, list[Event]]:
    """A run, and its events."""
    events: list[Event] = []
    return run(**options, listeners=[events.append]), events


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def call(capsys: Captured, *arguments: str, code: int) -> str:
    """The one line that a command says on its way out."""
    capsys.readouterr()
    assert invoke(list(arguments)) == code
    lines = capsys.readouterr().err.splitlines()
    assert not [line for line in lines if "Traceback" in line]
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    place = tmp_path / "volume"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights than there are here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


class TestDisks:
    """Full, or not to be written."""

    def test_a_full_disk(self, whole: Run, volume: Path, capsys: Captured) -> None:
        """One line, exit code 1; with room again it goes on from what was finished."""
        (volume / "ballast").write_bytes(b"0" * 2**10)
        line = call(capsys, *COMMAND, "--defense", "at", "--runs-dir", str(volume / "runs"), code=1)
        (directory,) = (volume / "runs").iterdir()
        assert "No space left on device" in line
        assert line.endswith(f"finished work is kept, resume with: advbench run --resume {directory}")
        assert not (directory / "record.json").exists()
        assert not list(directory.rglob(".*.tmp"))
        assert [path.name for path in directory.glob("checkpoint/*.safetensors")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(volume)], check=True)
        events: list[Event] = []
        same(run(resume=directory, listeners=[events.append]).path, whole.path)
        assert events[0].kind == "resume"

    def test_a_read_only_runs_directory(self, volume: Path, capsys: Captured) -> None:
        """A new run says so before anything; an unfinished one stays as it was."""
        subprocess.run(["mount", "-o", "remount,size=64m", str(volume)], check=True)
        directory = stopped(volume / "runs", "cell", 1)
        before = sorted(str(path) for path in directory.rglob("*"))
        subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
        line = call(capsys, *COMMAND, "--runs-dir", str(volume / "runs"), code=2)
        assert "Read-only file system" in line
        line = call(capsys, "run", "--resume", str(directory), code=2)
        assert "Read-only file system" in line
        assert sorted(str(path) for path in directory.rglob("*")) == before


def cut(path: Path) -> None:
    """Half of it is lost."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit is another."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.quick(r"newest-flipped|and the stage-cut|all-missing")
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flipped", "missing"])
@pytest.mark.parametrize(
    ("hit", "trained"),
    [
        # Newest snapshot, both, the stage before too, all; what is then trained again, as (stage, epoch).
        pytest.param(["stage-2-00001-0000001"], [(2, 2)], id="newest"),
        pytest.param(["stage-2-*"], [(2, 1), (2, 2)], id="both"),
        pytest.param(["stage-2-*", "trained-00001"], [(1, 1), (1, 2), (2, 1), (2, 2)], id="and the stage"),
        pytest.param(["stage-2-*", "trained-*"], [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)], id="all"),
    ],
)
def test_damaged_checkpoints(
    whole: Run, tmp_path: Path, hit: list[str], trained: list[tuple[int, int]], damage: Any
) -> None:
    """It goes on from what is sound, says so, and ends as it should; rows are not measured again."""
    directory = stopped(tmp_path, "batch", 2, epoch=2)
    paths = [path for name in hit for path in directory.glob(f"checkpoint/{name}.safetensors")]
    assert paths
    for path in paths:
        damage(path)
    finished, events = heard(defense="at", runs_dir=tmp_path, **TINY)
    same(finished.path, whole.path)
    done = [(event.stage, event.epoch) for event in events if event.kind == "epoch"]
    assert done == trained
    assert {event.stage for event in events if event.kind == "cell"} == {2}
    notes = [event.text for event in events if event.kind == "note"]
    if damage is not Path.unlink:
        assert notes
        assert all("is damaged" in note for note in notes)


@pytest.mark.parametrize("name", ["checkpoint/row-00001.json", "stages/1.safetensors"])
def test_damaged_rows_are_measured_again(whole: Run, tmp_path: Path, name: str) -> None:
    """Never taken as they are."""
    directory = stopped(tmp_path, "batch", 2)
    flip(directory / name)
    finished, events = heard(defense="at", runs_dir=tmp_path, **TINY)
    same(finished.path, whole.path)
    assert {event.stage for event in events if event.kind == "cell"} == {1, 2}


def test_damaged_pieces_are_measured_again(whole: Run, tmp_path: Path) -> None:
    """A flipped outcome is no outcome."""
    directory = stopped(tmp_path, "cell", 1)
    pieces = list((directory / "checkpoint" / "pieces").iterdir())
    assert pieces
    for path in pieces:
        path.write_text(path.read_text().replace('"right": "1', '"right": "0'))
        cut(path)
    same(run("at", runs_dir=tmp_path, **TINY).path, whole.path)


def test_newer_schemas_are_refused(whole: Run, tmp_path: Path, capsys: Captured) -> None:
    """Of a manifest and of a record: one line, nothing touched."""
    directory = stopped(tmp_path, "cell", 1)
    manifest = json.loads((directory / "run.json").read_text("utf-8"))
    (directory / "run.json").write_text(json.dumps({**manifest, "schema": 2}), "utf-8")
    line = call(capsys, "run", "--resume", str(directory), code=2)
    assert "unknown run schema 2: this version reads schema 1" in line
    record = json.loads((whole.path / "record.json").read_text("utf-8"))
    (tmp_path / "newer.json").write_text(json.dumps({**record, "schema": 2}), "utf-8")
    runs = str(tmp_path / "none")
    line = call(capsys, "run", "--config", str(tmp_path / "newer.json"), "--runs-dir", runs, code=2)
    assert "unknown record schema 2" in line
    assert not Path(runs).exists()


def test_a_clock_that_is_moved_back(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither which run is found nor what it measures asks for the time."""
    directory = stopped(tmp_path, "cell", 1)

    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(1999, 1, 1, tzinfo=tz or UTC)

    monkeypatch.setattr(advbench.runs.directory, "datetime", Past)
    monkeypatch.setattr("time.time", lambda: 0.0)
    for path in directory.rglob("*"):
        os.utime(path, (4e9, 4e9))
    finished = run("at", runs_dir=tmp_path, **TINY)
    assert finished.path == directory
    same(finished.path, whole.path)
    assert run("at", runs_dir=tmp_path, **TINY).path.name.startswith("19990101")


def test_two_processes_and_one_run(tmp_path: Path, capsys: Captured) -> None:
    """One wins, the other says so; the same command makes a run of its own meanwhile."""
    directory = stopped(tmp_path, "cell", 1)
    holding = "import sys; from leaderboards.records.lock import hold\n"
    holding += "with hold(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holding, str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        line = call(capsys, "run", "--resume", str(directory), code=2)
        by = f"is being written by process {other.pid} on .*: wait for it or stop it"
        assert re.fullmatch(f"error: run {directory.name} {by}", line)
        with pytest.raises(Stop):
            run("at", runs_dir=tmp_path, **TINY, listeners=[stop_at("start")])
        assert len(list(tmp_path.iterdir())) == 2
        other.communicate()
    assert invoke(["run", "--resume", str(directory)]) == 0


@pytest.mark.slow
def test_eight_at_once_in_one_store(tmp_path: Path) -> None:
    """Each gets a directory of its own and finishes; seven times the same command among them."""
    script = f"""
        import os, sys
        sys.path.insert(0, "tests")
        from advbench.cli.main import invoke
        from tiny_runs import few_probes
        import advbench.benchmark.run
        children = []
        for number in range(8):
            child = os.fork()
            if not child:
                seed = "0" if number else "1"
                options = {["run", "--sequence", "fgsm", *COMMAND[3:]]!r}
                options += ["--defense", "standard", "--seed", seed]
                with few_probes():
                    os._exit(invoke(options + ["--runs-dir", sys.argv[1]]))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.exit(any(codes))
    """
    done = python(script, str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    records, problems = find_records(tmp_path / "runs")
    assert problems == []
    assert sorted(record.config["seed"] for record in records) == [0] * 7 + [1]
    assert len({record.id for record in records}) == 8
    equal = [comparable(record) for record in records if record.config["seed"] == 0]
    assert all(one == equal[0] for one in equal)


class Failing(AT):
    """Raises at stage 2, until it is mended."""

    info = DefenseInfo(name="failing", paper=None, regimes=("continual",))
    mended = False

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """The loss, if there is one."""
        if stage.index == 2 and not type(self).mended:
            raise ZeroDivisionError("nothing\nto divide by")
        return super().loss(x, y, stage)


def test_a_defense_that_raises(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names stage and error; the traceback is on disk; stage 1 is not trained again."""
    monkeypatch.setitem(registry._classes, "failing", Failing)
    line = call(capsys, *COMMAND, "--defense", "failing", "--runs-dir", str(tmp_path), code=1)
    (directory,) = tmp_path.iterdir()
    assert line == (
        "error: stage 2 (failing against gaussian-noise): ZeroDivisionError: nothing to divide by "
        f"(its traceback is in {directory}/error.log); finished work is kept, resume with: "
        f"advbench run --resume {directory}"
    )
    assert "to divide by" in (directory / "error.log").read_text("utf-8").splitlines()[-1]
    monkeypatch.setattr(Failing, "mended", True)
    finished, events = heard(resume=directory)
    assert {event.stage for event in events if event.kind in ("epoch", "cell")} == {2}
    assert not (directory / "error.log").exists()
    same(finished.path, run("failing", runs_dir=tmp_path / "whole", **TINY).path)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """An attack that hangs on the digits, until it is mended; in training or in evaluation."""
    knobs = {"eps": Knob(0.2, "budget"), "training": Knob(0, "1 in training", training=1)}
    facts: dict[str, Any] = {"family": "noise", "norm": "linf", "access": "white-box", "kind": "budgeted"}
    state = {"training": False, "evaluation": True}

    def hang(_model: nn.Module, x: Tensor, _y: Tensor, *, training: float, **_knobs: Any) -> Tensor:
        while state["training" if training else "evaluation"]:
            torch.zeros(1)
        return x

    pool.names()
    monkeypatch.setattr(pool, "_entries", dict(pool._entries))
    pool.register(AttackInfo(name="hanging", paper=None, knobs=knobs, **facts))(hang)
    return state


PLACES = {
    "training": "stage 2 (at against hanging): attack 'hanging' on a batch of training",
    "evaluation": "row 0: attack 'hanging:eps=0.2,training=0' on row 0, block 0",
}


@pytest.mark.parametrize("where", PLACES)
def test_an_attack_that_hangs(where: str, hanging: dict[str, bool], tmp_path: Path) -> None:
    """It is stopped, and named with its place; finished work is kept."""
    hanging["training"], hanging["evaluation"] = where == "training", where == "evaluation"
    options = {**TINY, "sequence": "fgsm,hanging", "epochs": 1}
    with pytest.raises(RunFailedError) as caught:
        run("at", runs_dir=tmp_path, **options, attack_timeout=0.5)
    (directory,) = tmp_path.iterdir()
    assert str(caught.value) == (
        f"{PLACES[where]} did not end within 0.5 s (--attack-timeout); finished work is kept, "
        f"resume with: advbench run --resume {directory}"
    )
    hanging[where] = False
    _, events = heard(defense="at", runs_dir=tmp_path, **options)
    stages = {event.stage for event in events if event.kind == "epoch"}
    assert stages == ({2} if where == "training" else {1, 2})


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_none(wrong: str, capsys: Captured) -> None:
    line = call(capsys, *COMMAND, "--attack-timeout", wrong, code=2)
    assert "must be a number of seconds above 0" in line


def test_a_limit_leaves_no_trace() -> None:
    """What is in time is left alone, in the main thread and in others; timers and handlers are put back."""
    before = signal.getsignal(signal.SIGALRM)
    with limited(60, "this"), limited(None, "that"):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)

    def careless() -> None:
        while True:
            with contextlib.suppress(Exception):
                torch.zeros(1)

    with pytest.raises(AttackTimeoutError, match=r"^this did not end within 0\.01 s"), limited(0.01, "this"):
        careless()


def test_what_cannot_be_interrupted_is_ended() -> None:
    """Code that catches everything, as one without Python does: the process ends with a clear line."""
    script = """
        from advbench.runtime import timeouts
        timeouts.GRACE = 0.2
        with timeouts.limited(0.1, "attack 'endless' on row 1, block 2"):
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass
    """
    done = python(script)
    assert done.returncode == 1
    assert done.stderr == (
        "error: attack 'endless' on row 1, block 2 did not end within 0.1 s (--attack-timeout) and cannot be "
        "interrupted: the process ends\n"
    )


def test_a_loss_that_is_no_number(tmp_path: Path, capsys: Captured) -> None:
    """It stops naming stage, epoch and step; the last good state and all rows before stay."""
    command = [*COMMAND, "--defense", "at", "--set", "lr=1e30", "--set", "pretrain.lr=0.1"]
    line = call(capsys, *command, "--runs-dir", str(tmp_path), code=1)
    (directory,) = tmp_path.iterdir()
    assert re.match(r"error: at: the loss is not a number at stage 1, epoch 1, step \d", line)
    assert line.endswith(f"the last good state is kept in {directory}")
    kept = {path.name for path in (directory / "checkpoint").iterdir()}
    assert {"trained-00000.safetensors", "row-00000.json"} <= kept
    assert not [name for name in kept if name.startswith("stage-1")]
    assert find_records(tmp_path) == ([], [])


class TestTrust:
    """A factory is imported when the user types it, or with ``--trust``."""

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        code = "import pathlib\nfrom torch import nn\npathlib.Path('imported').touch()\n"
        code += "def make(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        Path("stranger.py").write_text(code)
        yield
        sys.modules.pop("stranger", None)

    def test_of_a_config(self, capsys: Captured) -> None:
        """A plain one too: a config cannot execute code."""
        Path("config.yaml").write_text("model: stranger:make\n")
        line = call(capsys, *COMMAND, "--config", "config.yaml", code=2)
        assert line.endswith(
            "config config.yaml names the model 'stranger:make', and using it imports that code: add --trust "
            "if you trust it"
        )
        assert not Path("imported").exists()
        assert not Path("runs").exists()
        assert invoke([*COMMAND, "--defense", "standard", "--config", "config.yaml", "--trust"]) == 0
        assert Path("imported").exists()

    def test_of_a_run_to_resume(self, capsys: Captured) -> None:
        """Its manifest may be a stranger's."""
        directory = stopped(Path("runs"), "cell", 0, model="stranger:make")
        sys.modules.pop("stranger")
        Path("imported").unlink()
        line = call(capsys, "run", "--resume", str(directory), code=2)
        said = "the model 'stranger:make', and resuming imports that code: add --trust if you trust it"
        assert said in line
        assert not Path("imported").exists()
        assert invoke(["run", "--resume", str(directory), "--trust"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing says how much memory is used")
def test_memory_stays_flat_over_30_stages(tmp_path: Path) -> None:
    """Resident memory at stage 30 is that at stage 10."""
    script = f"""
        import contextlib, ctypes, gc, os, sys
        from advbench import run
        from pathlib import Path
        sizes = {{}}
        def listen(event):
            if event.kind == "stage":
                # Memory that is free but not given back to the system comes and goes by 15 MiB.
                gc.collect()
                with contextlib.suppress(OSError, AttributeError):
                    ctypes.CDLL(None).malloc_trim(0)
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                sizes[event.stage] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        sequence = ",".join(f"gaussian-noise:eps={{0.01 * n:.2f}}" for n in range(1, 31))
        options = {{**{TINY!r}, "sequence": sequence, "epochs": 1}}
        run("air", runs_dir=sys.argv[1], **options, listeners=[listen])
        print(sizes[10], sizes[30])
    """
    done = python(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    early, late = (float(size) for size in done.stdout.split())
    # A kept copy of the model a stage would be 7 MiB, with its optimizer 14; cells and outcomes take 2.
    assert late - early < 5, done.stdout
