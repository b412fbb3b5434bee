"""Runs that several processes train together, and what happens when one of them ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, forked, here, python
from tiny_runs import TINY

from advbench import evaluate_model, run
from advbench.benchmark.prepare import prepare
from advbench.runtime.device import choose_device
from advbench.runtime.events import Event
from advbench.runtime.launch import KEYS, Launch, launched, own_threads, run_alone
from advbench.runtime.team import Leader, Member, join
from attacks_pool import InputError
from defenses import AT, DefenseInfo
from leaderboards import comparable, find_records

COMMAND = ["run", "--defense", "at", "--sequence", "fgsm,pgd:steps=5", "--unseen", "none", "--epochs", "3"]
COMMAND += ["--set", "pretrain.epochs=1", "--points", "60", "--device", "cpu", "--threads", "1"]


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return dict(
        zip(KEYS, [str(rank), str(count), "localhost", str(port), str(rank), str(count)], strict=True)
    )


@pytest.fixture
def together(tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    """Runs ``work`` with the number of the process in several processes; returns exit codes and stderr."""

    def started(work: Callable[[int], object], count: int = 2) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def do(rank: int) -> None:
            os.environ.update(environment(rank, count, port))
            os.dup2(os.open(tmp_path / f"{rank}.txt", os.O_WRONLY | os.O_CREAT), 2)
            work(rank)

        processes = [forked(do, rank) for rank in range(count)]
        for process in processes:
            process.join(60)
        return [
            (process.exitcode, (tmp_path / f"{rank}.txt").read_text())
            for rank, process in enumerate(processes)
        ]

    return started


def lines(found: list[tuple[int, str]]) -> list[str]:
    """What all processes wrote to stderr."""
    return [line for _, text in found for line in text.splitlines()]


class Torchrun:
    """The command line in two processes, started by torchrun."""

    def __init__(self, *arguments: str, cwd: Path = ROOT) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "advbench", *arguments],
            cwd=cwd,
            env=here(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        """Read what it reports until ``text`` is there."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if text in line:
                return
        raise AssertionError("\n".join(self.lines))

    def kill(self, rank: int) -> None:
        """End one process as the system does when memory runs out."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                status, variables = (path / "status").read_text(), (path / "environ").read_text()
            except OSError:
                continue
            if f"PPid:\t{self.process.pid}\n" in status and f"\0RANK={rank}\0" in f"\0{variables}":
                os.kill(int(path.name), signal.SIGKILL)

    def end(self) -> int:
        """Wait for its end; return torchrun's exit code."""
        _, text = self.process.communicate(timeout=120)
        self.lines += text.splitlines()
        return self.process.returncode

    @property
    def errors(self) -> list[str]:
        """Our lines, without torchrun's own report."""
        return [line for line in self.lines if line.startswith("error:")]

    @property
    def codes(self) -> list[int]:
        """The exit codes in torchrun's report, by process."""
        found = re.findall(r"rank +: (\d+).*?exitcode +: (-?\d+)", "\n".join(self.lines), re.DOTALL)
        return [code for _, code in sorted((int(rank), int(code)) for rank, code in found)]


def record_in(runs_dir: Path) -> dict[str, Any]:
    """What can be compared of the one record there."""
    records, problems = find_records(runs_dir)
    assert len(records) == 1
    assert not problems
    return comparable(records[0])


def test_a_process_knows_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables that torchrun sets, of which a process started alone has none, or those of one."""
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    assert launched() is None
    for key, value in environment(1, 4, 29500).items():
        monkeypatch.setenv(key, value)
    assert launched() == Launch(1, 4, 1, 4, "localhost")
    cores = len(os.sched_getaffinity(0))
    assert own_threads(Launch(0, 2, 0, 2, "")) == max(1, cores // 2)
    assert own_threads(Launch(0, 999, 0, 999, "")) == 1
    run_alone()
    assert launched() is None
    for key, value in environment(0, 1, 29500).items():
        monkeypatch.setenv(key, value)
    assert launched() is None


def test_each_process_gets_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own; more processes than GPUs, and one GPU for several, are refused."""
    for key, value in environment(1, 2, 29500).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"'cuda:1' is one GPU, and this machine runs 2 processes"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"has 1 CUDA devices and runs 2 processes: start one for each"):
        choose_device("auto")


def test_the_number_of_processes_is_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number is another run; one process is what it was without any."""
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    alone = prepare({**TINY, "defense": "at"})
    assert "processes" not in alone.facts
    for key, value in environment(0, 2, 29500).items():
        monkeypatch.setenv(key, value)
    two = prepare({**TINY, "defense": "at"})
    monkeypatch.setenv("WORLD_SIZE", "3")
    three = prepare({**TINY, "defense": "at"})
    assert (two.processes, two.facts["processes"]) == (2, 2)
    assert len({alone.identity, two.identity, three.identity}) == 3


def test_a_run_resumes_with_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of processes; any other is refused by name."""
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)

    def stop(event: Event) -> None:
        if event.kind == "cell":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("at", **TINY, runs_dir=tmp_path, listeners=[stop])
    (unfinished,) = tmp_path.iterdir()
    manifest = json.loads((unfinished / "run.json").read_text())
    manifest["more"]["facts"]["processes"], manifest["identity"] = 2, "0" * 64
    (unfinished / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match="was made with 2 processes, not 1: resume it with torchrun and 2 processes"
    ):
        run(resume=unfinished)


class Stubborn(AT):
    """A defense that trains by a loop of its own."""

    info = DefenseInfo(name="stubborn", paper=None, regimes=("continual",))

    def fit(self, *arguments: Any, **options: Any) -> list[dict[str, float]]:
        """Train without the loop that averages gradients."""
        return super().fit(*arguments, **options)


def test_a_fit_of_its_own_takes_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there would average its gradients."""
    for key, value in environment(0, 2, 29500).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=r"has a fit\(\) of its own, which one process runs"):
        prepare({**TINY, "defense": f"{__name__}:Stubborn"})


def test_orders_and_answers(together: Callable[..., list[tuple[int, str]]]) -> None:
    """Process 0 orders, each of the others answers, and all return its result or raise its error."""

    def work(rank: int) -> None:
        others = join()
        if isinstance(others, Leader):
            with others.leading() as finish:
                others.order(20)
                assert sorted(others.answer() for _ in range(2)) == [21, 22]
                others.order("unheard")
                others.order(30)
                assert sorted(others.answer() for _ in range(2)) == [31, 32]
                finish("result")
            with pytest.raises(InputError, match="mistaken"), others.leading():
                raise InputError("mistaken")
            others.end(0)
        else:
            assert isinstance(others, Member)
            do: Callable[[Any], Any] = lambda order: order + rank if isinstance(order, int) else "late"  # noqa: E731
            assert others.serve(do) == "result"
            with pytest.raises(InputError, match="mistaken"):
                others.serve(do)

    assert together(work, 3) == [(0, "")] * 3


@pytest.mark.parametrize(("killed", "said"), [(1, "process 1 of 3 ended"), (0, "process 0 of 3 ended")])
def test_a_killed_process_ends_all(
    together: Callable[..., list[tuple[int, str]]], killed: int, said: str
) -> None:
    """At once, whatever they are doing, and with one line in all."""

    def work(rank: int) -> None:
        others = join()

        def wait(_order: object = None) -> None:
            if rank == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

        if isinstance(others, Leader):
            with others.leading():
                others.order("wait")
                wait()
        elif others is not None:
            others.serve(wait)

    began = time.monotonic()
    found = together(work, 3)
    assert time.monotonic() - began < 20
    assert [code for code, _ in found] == [-signal.SIGKILL if rank == killed else 1 for rank in range(3)]
    assert [said in line for line in lines(found)] == [True]


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (InputError("no file there"), "error: process 2 of 3: no file there", 2),
        (MemoryError(), "error: process 2 of 3: MemoryError", 1),
    ],
)
def test_an_error_names_its_process(
    together: Callable[..., list[tuple[int, str]]], error: Exception, said: str, code: int
) -> None:
    """All end with its code."""

    def work(rank: int) -> None:
        others = join()

        def do(_order: object) -> None:
            if rank == 2:
                raise error
            time.sleep(60)

        if isinstance(others, Leader):
            with others.leading():
                others.order("go")
                others.answers()
        elif others is not None:
            others.serve(do)

    found = together(work, 3)
    assert [one for one, _ in found] == [code] * 3
    assert lines(found) == [said]


def test_the_last_line_can_go_elsewhere(
    together: Callable[..., list[tuple[int, str]]], tmp_path: Path
) -> None:
    """To a program that starts the processes and whose user does not see their stderr."""

    def work(_rank: int) -> None:
        others = join()

        def do(_order: object) -> None:
            raise InputError("no file there")

        if isinstance(others, Leader):
            others.last_line = (tmp_path / "said").write_text
            with others.leading():
                others.order("go")
                others.answers()
        elif others is not None:
            others.serve(do)

    assert together(work) == [(2, "")] * 2
    assert (tmp_path / "said").read_text() == "process 1 of 2: no file there"


MODELS = """
import torch
from torch import nn
def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    together: Callable[..., list[tuple[int, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation's record does not depend on the number of processes, in any of which it is returned."""
    (tmp_path / "several_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    how: dict[str, Any] = {"model": "several_models:make", "attacks": "fgsm,gaussian-noise", "points": 300}
    how |= {"threads": 1, "surrogate": "none", "device": "cpu"}

    def work(rank: int) -> None:
        done = evaluate_model(**how, runs_dir=tmp_path / "two")
        (tmp_path / f"{rank}.json").write_text(json.dumps(comparable(done.record)))

    assert [code for code, _ in together(work)] == [0, 0]
    one = evaluate_model(**how, runs_dir=tmp_path / "one")
    expected = json.loads(json.dumps(comparable(one.record)))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


@pytest.mark.usefixtures("short_probes")
def test_two_processes_train_one_run(together: Callable[..., list[tuple[int, str]]], tmp_path: Path) -> None:
    """All return it, and the record says how many they were; a mistake is raised in all."""

    def work(rank: int) -> None:
        done = run("at", **TINY, runs_dir=tmp_path / "runs")
        with pytest.raises(InputError, match="did you mean"):
            run("att", **TINY, runs_dir=tmp_path / "runs")
        (tmp_path / f"{rank}.json").write_text(json.dumps(comparable(done.record)))

    assert [code for code, _ in together(work)] == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1] == json.loads(json.dumps(record_in(tmp_path / "runs")))
    assert found[0]["environment"]["processes"] == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of the command, from two processes that nothing interrupts."""
    runs_dir = tmp_path_factory.mktemp("whole")
    started = Torchrun(*COMMAND, "--runs-dir", str(runs_dir))
    assert started.end() == 0, started.lines
    return record_in(runs_dir)


@pytest.mark.slow
def test_a_killed_run_resumes(whole: dict[str, Any], tmp_path: Path) -> None:
    """With one line in all; the same command then gives the record of the uninterrupted run.

    Process 0 is the one that writes. ``test_a_killed_process_ends_all`` kills the others too.
    """
    command = [*COMMAND, "--runs-dir", str(tmp_path)]
    first = Torchrun(*command)
    first.wait_for("row 0/2  fgsm")
    first.kill(0)
    killed = time.monotonic()
    assert first.end() != 0
    assert time.monotonic() - killed < 15
    assert first.errors == ["error: process 0 of 2 ended; the same command resumes this run"]
    assert sorted(first.codes) == [-signal.SIGKILL, 1]
    second = Torchrun(*command)
    assert second.end() == 0, second.lines
    assert any("going on with run" in line for line in second.lines)
    assert record_in(tmp_path) == whole


@pytest.mark.slow
def test_an_interrupted_run_resumes(whole: dict[str, Any], tmp_path: Path) -> None:
    """Torchrun passes the signal on to all processes; the run stops between two steps."""
    command = [*COMMAND, "--runs-dir", str(tmp_path)]
    first = Torchrun(*command)
    first.wait_for("row 1/2  pgd")
    first.process.send_signal(signal.SIGTERM)
    assert first.end() != 0
    assert len(first.errors) == 1
    assert first.errors[0].startswith("error: interrupted; the same command resumes it")
    (unfinished,) = tmp_path.iterdir()
    second = Torchrun("run", "--resume", str(unfinished), "--runs-dir", str(tmp_path))
    assert second.end() == 0, second.lines
    assert record_in(tmp_path) == whole


@pytest.mark.slow
def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    """Wherever it is found; every process ends with code 2."""
    for given, said in [("--defnse", "No such option: --defnse"), ("--defense=att", "did you mean 'at'?")]:
        started = Torchrun("run", given, "--runs-dir", str(tmp_path))
        assert started.end() != 0
        assert len(started.errors) == 1
        assert said in started.errors[0]
        assert started.codes == [2, 2]


FAULTY = """
import os
from defenses import AT, DefenseInfo

class Faulty(AT):
    info = DefenseInfo(name="faulty", paper=None, regimes=("continual",))

    def loss(self, x, y, stage):
        if os.environ["RANK"] == "1":
            raise MemoryError("no room")
        return super().loss(x, y, stage)
"""


@pytest.mark.slow
def test_an_error_in_training_names_its_process(tmp_path: Path) -> None:
    """The others wait for its gradients meanwhile; its traceback is kept."""
    (tmp_path / "faulty_defense.py").write_text(FAULTY)
    given = ["faulty_defense:Faulty" if word == "at" else word for word in COMMAND]
    started = Torchrun(*given, cwd=tmp_path)
    assert started.end() != 0
    assert started.errors == [
        "error: process 1 of 2: MemoryError: no room; the same command resumes this run"
    ]
    assert started.codes == [1, 1]
    (unfinished,) = (tmp_path / "runs").iterdir()
    assert "in loss" in (unfinished / "error.log").read_text()


@pytest.mark.slow
def test_an_evaluation_by_torchrun(tmp_path: Path) -> None:
    """All processes measure; process 0 writes one record."""
    (tmp_path / "several_models.py").write_text(MODELS)
    command = ["eval", "--model", "several_models:make", "--attacks", "fgsm,pgd:steps=3", "--points", "300"]
    started = Torchrun(*command, "--threads", "1", "--surrogate", "none", "--device", "cpu", cwd=tmp_path)
    assert started.end() == 0, started.lines
    shared = record_in(tmp_path / "runs")
    done = python(
        "-m",
        "advbench",
        *command,
        *("--threads", "1", "--surrogate", "none", "--runs-dir", "alone"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    alone = record_in(tmp_path / "alone")
    assert shared["cells"] == alone["cells"]
    assert shared["audit"] == alone["audit"]


@pytest.mark.slow
def test_models_of_other_runs_go_along(
    together: Callable[..., list[tuple[int, str]]], tmp_path: Path
) -> None:
    """A student asks the same teacher in every process."""
    teacher = run("at", **TINY, runs_dir=tmp_path)

    def work(_rank: int) -> None:
        given = {**TINY, "set": {**TINY["set"], "teacher": str(teacher.path)}}
        done = run("ta-loop", **given, runs_dir=tmp_path / "students")
        assert done.record.environment["processes"] == 2

    assert [code for code, _ in together(work)] == [0, 0]


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    """In short form; its verdict is for a quiet machine."""
    short = ["--model", "digits-cnn", "--side", "8", "--batch", "16", "--batches", "2", "--repeats", "1"]
    done = python("benchmarks/processes.py", *short)
    assert "images per second" in done.stdout, done.stderr
    assert done.returncode in (0, 1)
    assert "two processes are" in done.stdout
