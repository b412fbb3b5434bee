"""Sweeps: what a grid means, what is refused, and that nothing is lost, doubled or different."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import TINY, records_of

from advbench import run
from advbench.audit.battery import battery, transfers
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.config.options import Options
from advbench.config.resolve import bound_attacks
from advbench.sweep.cluster import Resources, check_room
from advbench.sweep.estimate import Sizes, cost_of, makespan, recorded_speed, work_of
from advbench.sweep.grid import GridCell, parse_grid, parse_seeds, read_grid
from advbench.sweep.one_run import Job, perform
from advbench.sweep.plan import SweepPlan, make_plan
from advbench.sweep.transfer import FOLDER, adopt, arrival, clear_arrivals, pieces, receive
from attacks_pool import InputError, Passes, pool
from leaderboards import RecordError, comparable, read_record
from leaderboards.records.checksums import verify_checksums
from leaderboards.records.inventory import find_complete

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
PATIENCE = 120.0
"""Seconds after which a test gives up waiting for another process."""

MODELS = """
import multiprocessing, os, signal
from pathlib import Path
import torch
from torch import nn

class Mortal(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.flag = Path(f"killed-{number}")
    def forward(self, x):
        # Where a worker trains it, once.
        if self.training and multiprocessing.parent_process() is not None and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x)

def mortal(): return Mortal(1)
def harmless(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grid file, the tiny options under what is given."""

    def make(**given: Any) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**TINY, **given}))
        return path

    return make


@pytest.fixture
def grid(write: Callable[..., Path]) -> Path:
    """A grid file of the tiny options."""
    return write()


def sweep(grid: Path, runs_dir: Path, *arguments: str, code: int = 0) -> None:
    """``advbench sweep`` in this process."""
    assert invoke(["sweep", str(grid), "--runs-dir", str(runs_dir), *arguments]) == code


def start(grid: Path, runs_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """``advbench sweep`` in a process of its own."""
    command = [sys.executable, "-m", "advbench", "sweep", str(grid), "--runs-dir", str(runs_dir), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen[str], word: str) -> str:
    """The first line on its stderr that holds ``word``."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return line
    raise AssertionError(f"it ended and never said {word!r}")


# --- what a grid means ---


def test_axes_multiply_and_own_options_stay_with_their_defense() -> None:
    """Every combination; a defense's own settings add to the common ones; what is excluded is not there."""
    extra = {"defense": "standard", "sequence": "fgsm", "seed": 7, "set": {"lr": 0.5}}
    cells = parse_grid(
        {
            "defenses": ["at", {"defense": "air", "set": {"lambda_i": 1}}],
            "sequences": ["fgsm,pgd", ["fgsm", "cw"]],
            "seeds": "0-2",
            "set": {"lr": 0.05},
            "exclude": [{"defense": "at", "sequence": "fgsm, cw", "seed": [1, 2]}],
            "include": [extra],
        }
    )
    assert len(cells) == 2 * 2 * 3 - 2 + 1
    air = [cell.options for cell in cells if cell.options["defense"] == "air"]
    assert [cell["seed"] for cell in air] == [0, 1, 2, 0, 1, 2]
    assert all(cell["set"] == {"lr": 0.05, "lambda_i": 1} for cell in air)
    at = [cell.options for cell in cells if cell.options["defense"] == "at"]
    expected = [("fgsm,pgd", 0), ("fgsm,pgd", 1), ("fgsm,pgd", 2), ("fgsm,cw", 0)]
    assert [(options["sequence"], options["seed"]) for options in at] == expected
    assert cells[-1] == GridCell(extra, sample_seed=7)


def test_sequences_and_data_sets_have_own_options_too() -> None:
    """What is unseen depends on the sequence; a defense's own settings go over both."""
    cells = parse_grid(
        {
            "datasets": ["digits", {"dataset": "mnist", "data_dir": "data", "points": 500}],
            "sequences": [{"sequence": ["fgsm", "pgd"], "unseen": "square"}, "fgsm"],
            "defenses": ["at", {"defense": "air", "unseen": "mim"}],
            "points": 100,
            "exclude": [{"sequence": "fgsm", "dataset": "mnist"}],
        }
    )
    keys = ("dataset", "sequence", "defense", "unseen", "points", "data_dir")
    assert [tuple(cell.options.get(key) for key in keys) for cell in cells] == [
        ("digits", "fgsm,pgd", "at", "square", 100, None),
        ("digits", "fgsm,pgd", "air", "mim", 100, None),
        ("digits", "fgsm", "at", None, 100, None),
        ("digits", "fgsm", "air", "mim", 100, None),
        ("mnist", "fgsm,pgd", "at", "square", 500, "data"),
        ("mnist", "fgsm,pgd", "air", "mim", 500, "data"),
    ]


def test_one_value_is_an_axis_too_and_include_takes_it_over() -> None:
    """Singular and plural spellings mean the same; what the grid says once holds for what is added."""
    cells = parse_grid({"dataset": "digits", "defenses": ["at", "air"], "include": [{"defense": "standard"}]})
    assert [cell.options for cell in cells] == [
        {"dataset": "digits", "defense": name} for name in ("at", "air", "standard")
    ]


@pytest.mark.parametrize(
    ("given", "counts", "seeds"),
    [
        (3, True, [0, 1, 2]),
        (3, False, [3]),
        ("3", True, [0, 1, 2]),
        ("0,3,7", True, [0, 3, 7]),
        ("2-4", False, [2, 3, 4]),
        ([5, 1], True, [5, 1]),
    ],
)
def test_seeds_are_counted_listed_or_a_range(given: Any, counts: bool, seeds: list[int]) -> None:
    """As ``advbench run --seeds`` reads them."""
    assert parse_seeds(given, counts=counts) == seeds


def test_seeds_of_one_group_meet_one_sampled_sequence(write: Callable[..., Path], tmp_path: Path) -> None:
    """As with ``advbench run --seeds``: else no two of them could be compared."""
    grid = write(sequence="sample:2", seeds=2)
    plan = make_plan(read_grid(grid), tmp_path / "runs")
    assert plan.cells[0].config.sequence == plan.cells[1].config.sequence


# --- what is refused ---

BOMB = "a: &a [x, x]\nsequences: [*a, *a]"
BAD: dict[str, tuple[str, str]] = {
    "no yaml": ("defenses: [at", "is neither YAML nor JSON"),
    "bytes": ("\0", "is neither YAML nor JSON"),
    "nothing": ("", "must hold key: value pairs, not nothing"),
    "a list": ("- at", "must hold key: value pairs, not list"),
    "a key twice": ("defenses: [at]\ndefenses: [air]", "'defenses' is listed twice"),
    "bomb": (BOMB, "aliases (*name) are not read"),
    "tag": ("defense: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "no axis": ("epochs: 1", "it is empty: give at least one of dataset, model"),
    "empty mapping": ("{}", "it is empty"),
    "empty axis": ("defenses: []", "defense is an empty list"),
    "unknown key": ("defences: at", "unknown key 'defences': did you mean 'defenses'?"),
    "runs_dir": ("defense: at\nruns_dir: x", "unknown key 'runs_dir'"),
    "both spellings": ("defense: at\ndefenses: air", "'defense' is given twice"),
    "defense number": ("defense: 3", "defense: 3 is int, expected text"),
    "defense yes": ("defense: yes", "defense: True is bool, expected text"),
    "defense null": ("defense: null", "defense: None is nothing, expected text"),
    "defense unnamed": ("defenses: [{set: {lr: 1}}]", "must name one under 'defense'"),
    "defense with an axis": ("defenses: [{defense: at, seed: 1}]", "cannot have a seed of its own"),
    "defense with a wrong key": (
        "defenses: [{defense: at, sett: {}}]",
        "unknown key 'sett': did you mean 'set'?",
    ),
    "sequence unnamed": ("sequences: [{unseen: cw}]", "must name one under 'sequence'"),
    "sequence with an axis": (
        "sequences: [{sequence: fgsm, defense: at}]",
        "cannot have a defense of its own",
    ),
    "sequence number": ("sequence: 3", "sequence: 3 is int, expected text"),
    "sequence of mappings": ("sequences: [[{pgd: 1}]]", "is list, expected text"),
    "dataset list": ("datasets: [[digits]]", "is list, expected text"),
    "model number": ("model: 1", "model: 1 is int, expected text"),
    "seeds 0": ("seeds: 0", "must name 1 to 1,000 different seeds"),
    "seeds many": ("seeds: 100000000000000000000", "must name 1 to 1,000 different seeds"),
    "seeds twice": ("seeds: [1, 1]", "different seeds"),
    "seeds back": ("seeds: 4-1", "must name 1 to 1,000"),
    "seeds text": ("seeds: some", "cannot be read: write 5, [0, 3, 7] or 0-4"),
    "seeds fraction": ("seeds: 1.5", "cannot be read"),
    "seed yes": ("seed: true", "cannot be read"),
    "seed negative": ("seed: -1", "a seed is at least 0"),
    "seed mapping": ("seed: {a: 1}", "cannot be read"),
    "exclude mapping": ("defense: at\nexclude: {seed: 1}", "exclude must be a list of mappings"),
    "exclude text": ("defense: at\nexclude: [at]", "exclude must be a list of mappings"),
    "exclude nothing": ("defense: at\nexclude: [{}]", "exclude must be a list of mappings"),
    "exclude key": ("defense: at\nexclude: [{defens: at}]", "unknown key 'defens': did you mean 'defense'?"),
    "exclude no cell": ("defense: at\nexclude: [{defense: arr}]", "exclude, entry 1, matches no cell"),
    "exclude all": ("defense: at\nexclude: [{defense: at}]", "exclude leaves no cell"),
    "include which": (
        "seeds: 2\ninclude: [{defense: at}]",
        "include, entry 1, must name a seed: the grid has 2",
    ),
    "include nested": ("include: [{defense: at, include: []}]", "is allowed only at the top of the file"),
    "too many": ("seeds: 1000\nsequences: [" + "x," * 11 + "]", "it has 11,000 cells; at most 10,000"),
    "option type": ("defense: at\nepochs: many", "epochs: "),
    "option value": ("defense: at\nepochs: 0", "epochs: "),
    "set": ("defense: at\nset: 3", "set: "),
    "code": ("model: os:getcwd", "the model 'os:getcwd' is code to import: add --trust"),
    "cell defense": (
        "defenses: [at, arr]",
        "cell 2 (defense=arr): unknown defense 'arr': did you mean 'air'?",
    ),
    "cell sequence": ("sequences: [fgsm, pdg]", "unknown attack 'pdg'"),
    "cell model": ("model: lenett", "unknown model 'lenett': did you mean 'lenet'?"),
    "cell dataset": ("dataset: digitz", "unknown data set 'digitz'"),
    "cell setting": ("defense: at\nset: {lambda_i: 1}", "unknown setting for at 'lambda_i'"),
    "cell data": ("dataset: mnist", "data set 'mnist' is read from files"),
    "same text": ("defenses: [at, at]", "cells 1 and 2 are the same run"),
    "same run": ("defense: at\nsequences: [fgsm, 'fgsm:eps=0.2']", "cells 1 and 2 are the same run"),
}


def refused(grid: Path, runs_dir: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a sweep is refused, before anything runs or is written: exit code 2."""
    before = sorted(grid.parent.rglob("*"))
    sweep(grid, runs_dir, *arguments, code=2)
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("error: ")
    assert sorted(grid.parent.rglob("*")) == before
    return err


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_grid_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = BAD[case]
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert expected in refused(path, tmp_path / "runs", capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--workers 0", "workers"),
        ("--workers many", "workers"),
        ("--cpus 2", "need --ray"),
        ("--gpus-per-run 2", "need --ray: add --ray local for this machine"),
        ("--processes-per-run 2", "need --ray: add --ray local for this machine"),
        ("--processes-per-run 0", "processes-per-run"),
        ("--ray local --gpus-per-run 1.6", "must be a whole number above 1: write 2"),
        ("--ray local --gpus 2 --processes-per-run 3", "contradict each other: each process takes one GPU"),
        ("--gpus 1", "need --ray"),
        ("--memory 1GB", "need --ray"),
        ("--ray local --workers 2", "--workers is for this machine"),
        ("--ray somewhere", "is not an address: write auto, local or host:port"),
        ("--ray a/b:1", "is not an address"),
        ("--ray host:0", "is not an address"),
        ("--ray local --memory much", "cannot be read: write 500MB or 4GiB"),
        ("--ray local --memory -1", "cannot be read"),
        ("--ray local --cpus -1", "cpus"),
        ("--attack-timeout 0", "must be a number of seconds above 0"),
        ("--attack-timeout nan", "must be a number of seconds above 0"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: str, expected: str, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(grid, tmp_path / "runs", capsys, *arguments.split())


def test_missing_files_and_packages_are_one_line(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No grid, a file where the store should be, Ray not installed."""
    runs_dir = tmp_path / "runs"
    assert "cannot read grid" in refused(tmp_path / "nowhere.yaml", runs_dir, capsys)
    assert "is a file: name another" in refused(grid, grid, capsys)
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(grid, runs_dir, capsys, "--ray", "local")
    assert "ray is not installed: pip install 'advbench[ray]'" in said
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    said = refused(grid, runs_dir, capsys, "--ray", "local", "--processes-per-run", "2")
    assert "several processes for a run need Ray Train: pip install 'advbench[ray]'" in said


# --- the plan ---


@pytest.mark.slow
def test_the_plan_counts_and_writes_nothing(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many runs there are, which are finished, and an estimate that says what it is."""
    grid = write(defenses=["standard", "at"], seeds=2)
    sweep(grid, tmp_path / "runs", "--dry-run", "--workers", "2")
    out, err = capsys.readouterr()
    assert err == ""
    assert "4 runs: 0 finished, 0 unfinished, 4 new" in out
    assert re.search(r"estimate   \S+ with 2 workers", out)
    assert "timed here" in out
    assert not (tmp_path / "runs").exists()
    run("at", runs_dir=tmp_path / "runs", seed=1, **TINY)
    sweep(grid, tmp_path / "runs", "--plan")
    out, _ = capsys.readouterr()
    assert "4 runs: 1 finished, 0 unfinished, 3 new" in out
    assert "from 1 run of at in the store" in out


def test_passes_are_counted_by_hand(write: Callable[..., Path], tmp_path: Path) -> None:
    """2 stages of 3 epochs on 1,293 images, 2 attacks and 40 points in 3 rows, and the audit's probes."""
    settings = {"pretrain.epochs": 2, "eps_warmup": 0}
    grid = write(sequence="fgsm,pgd:steps=5", defense="at", epochs=3, points=40, set=settings)
    config = make_plan(read_grid(grid), tmp_path / "runs").cells[0].config
    searches = [pool.get("fgsm", eps=0.2), pool.get("pgd", eps=0.2, steps=5)]
    attacks = bound_attacks(config)["seen"]
    costs = {
        "crafting": [cost_of(pool.get(name, eps=0.2).for_training(), 10) for name in ("fgsm", "pgd")],
        "searches": [cost_of(one, 10) for one in searches],
        "probes": [cost_of(one, 10) for one in (*battery(attacks), *transfers(attacks))],
    }
    # Each search also asks once for its verdict; clean points are asked in each row and twice in the audit.
    forwards, backwards = (
        1293 * (2 + 3 * sum(cost[way] + 1 for cost in costs["crafting"]))
        + 3 * 40 * sum(cost[way] + asked for cost in costs["searches"])
        + 40 * sum(cost[way] + asked for cost in costs["probes"])
        + (3 + 2) * 40 * asked
        for way, asked in ((0, 1), (1, 0))
    )
    sizes = Sizes(train=1293, validation=144, test=360, classes=10)
    assert work_of(config, sizes) == Passes(forwards, backwards)


def test_a_recorded_speed_gives_back_what_the_run_took(brief_run: Any) -> None:
    """Exactly, for a run like the one it was taken from; none where the data or the model are others."""
    record, config = brief_run.record, brief_run.config
    fingerprint = record.environment["data"]["fingerprint"]
    speed = recorded_speed([record], config, fingerprint)
    assert speed is not None
    taken = record.cost.training_seconds + record.cost.evaluation_seconds
    sizes = Sizes(1293, 144, 360, 10)
    assert speed.seconds(work_of(config, sizes)) == pytest.approx(taken, rel=1e-9)
    assert recorded_speed([record], config, "another") is None
    assert recorded_speed([record], config, fingerprint, processes=2) is None
    assert recorded_speed([record], config.model_copy(update={"model": "mlp"}), fingerprint) is None


def test_a_plan_for_several_processes(tmp_path: Path) -> None:
    """Its identities are those that the processes will find; one GPU for all of them is refused."""
    options = {**TINY, "defense": "at"}
    plan = make_plan([GridCell(options, 0)], tmp_path, elsewhere=True, processes=2)
    assert plan.processes == 2
    assert plan.cells[0].identity == prepare(options, processes=2).identity != prepare(options).identity
    assert plan.speeds[0].source.endswith("in one process")
    grid = [GridCell({**options, "device": "cuda:1"}, 0)]
    with pytest.raises(InputError, match=r"is one GPU, and each run takes 2 processes: write device: cuda"):
        make_plan(grid, tmp_path, elsewhere=True, gpus=2, processes=2)


def test_a_machine_with_too_few_gpus_is_refused() -> None:
    """Or CPUs, where nothing can be added."""
    need = Resources(cpus=2, gpus=2, processes=2)
    assert need.each == {"CPU": 2, "GPU": 1}
    check_room({"CPU": 4.0, "GPU": 2.0}, need)
    with pytest.raises(InputError, match="takes 4 CPUs in 2 processes, and this machine has 2: lower --cpus"):
        check_room({"CPU": 2.0, "GPU": 2.0}, need)
    with pytest.raises(InputError, match="takes 2 GPUs in 2 processes, and this machine has 0: lower --gpus"):
        check_room({"CPU": 4.0}, need)


def test_workers_share_the_time() -> None:
    """Each takes the next one when it is free."""
    assert makespan([3, 1, 1, 1], 1) == 6
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([], 2) == 0
    assert SweepPlan([], []).seconds(2) == 0


# --- what it makes ---


@pytest.mark.slow
def test_two_workers_make_what_run_makes(
    write: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same records as ``advbench run``; a second time nothing is repeated."""
    grid = write(defense="at", seed=0, include=[{"defense": "air", "seed": 1}])
    sweep(grid, tmp_path / "two", "--workers", "2")
    for defense, seed in (("at", 0), ("air", 1)):
        run(defense, runs_dir=tmp_path / "alone", seed=seed, **TINY)
    alone = records_of(tmp_path / "alone")
    assert len(alone) == 2
    assert records_of(tmp_path / "two") == alone
    out, err = capfd.readouterr()
    assert "2 of 2 runs complete" in out
    # Workers keep off the terminal: what is there is the parent's.
    assert all(re.match(r"\[ *\w+\] \d/2  ", line) for line in err.splitlines())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*")}
    sweep(grid, tmp_path / "two", "--workers", "2")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*")} == before
    assert "nothing is left to do" in capfd.readouterr().out


@pytest.mark.slow
@POSIX
def test_a_failing_cell_and_a_killed_worker_leave_the_others_alone(
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fails its cell only, with a line that says why; the next time only those are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid_models.py").write_text(MODELS)
    models = ["grid_models:mortal", "grid_models:harmless"]
    settings = {"lr": 1e30, "momentum": 0, "max_grad_norm": "none", "schedule": "constant"}
    diverging = {"defense": "at", "model": "grid_models:harmless", "seed": 5, "set": settings}
    grid = write(defense="at", models=models, include=[diverging, {"defense": "air", "model": models[1]}])
    sweep(grid, tmp_path / "runs", "--workers", "1", "--trust", code=1)
    out, err = capsys.readouterr()
    assert "2 of 4 runs complete, 2 failed" in out
    failures = [line for line in err.splitlines() if line.startswith("failed: ")]
    killed = "cell 1, at · fgsm · digits · grid_models:mortal · seed 0: its process was ended by SIGKILL"
    assert killed in failures[0]
    assert "cell 3" in failures[1]
    assert "the loss is not a number" in failures[1]
    first = {path.parent.name for path in (tmp_path / "runs").glob("*/record.json")}
    sweep(grid, tmp_path / "runs", "--workers", "1", "--trust", code=1)
    out, err = capsys.readouterr()
    assert "2 finished, " in out
    assert "3 of 4 runs complete, 1 failed" in out
    assert "[" in err
    second = {path.parent.name for path in (tmp_path / "runs").glob("*/record.json")}
    assert first < second
    assert len(second) == 3
    assert len(list((tmp_path / "runs").iterdir())) == 4


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: int, code: int, write: Callable[..., Path], tmp_path: Path
) -> None:
    """It leaves with the code that shells give, says how to go on, and the rest is done the next time."""
    grid = write(seeds=2)
    process = start(grid, tmp_path / "runs", "--workers", "1")
    wait_for(process, "begins")
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert err.splitlines()[-1] == "error: interrupted; repeat the command to do the rest"
    done = {path.parent for path in (tmp_path / "runs").glob("*/record.json")}
    assert len(done) < 2
    if number == signal.SIGTERM:
        return
    sweep(grid, tmp_path / "runs", "--workers", "1")
    assert len(records_of(tmp_path / "runs")) == 2
    # What was cut off was gone on with in its place.
    assert done <= set((tmp_path / "runs").iterdir())
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
@POSIX
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the workers")
def test_workers_end_with_their_parent(write: Callable[..., Path], tmp_path: Path) -> None:
    """Also where it had no time to tell them; a sweep then goes on with what they saved."""
    process = start(write(epochs=2000, seeds=2), tmp_path / "runs", "--workers", "1")
    wait_for(process, "begins")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while left := [child for child in children if _lives(int(child))]:
        assert time.monotonic() < deadline, f"{left} go on without their parent"
        time.sleep(0.05)
    assert not list((tmp_path / "runs").glob("*/record.json"))


def _lives(process: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    return False


@pytest.mark.slow
def test_a_cell_is_the_run_that_was_planned_or_none(tmp_path: Path) -> None:
    """Where code or devices differ nothing is run; what is finished already is not run again."""
    options = {**TINY, "defense": "at"}
    with pytest.raises(InputError, match="would make another run than the one planned"):
        perform(Job(1, options, 0, "0" * 64), tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/record.json"))
    [cell] = make_plan([GridCell(options, 0)], tmp_path / "runs").cells
    job = Job(1, cell.options, 0, cell.identity)
    path = perform(job, tmp_path / "runs")
    assert find_complete(tmp_path / "runs", cell.identity) == [path]
    assert perform(job, tmp_path / "runs") == path
    assert Options.of(cell.options).threads == 1


# --- runs that come from elsewhere ---


def test_a_run_arrives_whole_under_a_name_of_its_own(brief_run: Any, tmp_path: Path) -> None:
    """Every file, weights too; where the name is taken the run is renamed throughout."""
    for expected in (brief_run.record.id, f"{brief_run.record.id}-2"):
        with arrival(tmp_path) as folder:
            for name, piece in pieces(brief_run.path):
                receive(folder, name, piece)
            path = adopt(folder, tmp_path)
        assert path == tmp_path / expected
        assert read_record(path).id == expected
        assert verify_checksums(path) == []
        assert comparable(read_record(path)) == comparable(brief_run.record)
        weights = "model.safetensors"
        assert (path / weights).read_bytes() == (brief_run.path / weights).read_bytes()
    assert not (tmp_path / FOLDER).exists()


def test_a_run_that_does_not_arrive_whole_is_no_run(brief_run: Any, tmp_path: Path) -> None:
    """A missing file is noticed, a name that leads elsewhere refused, what a dead process left removed."""
    with arrival(tmp_path) as folder:
        for name, piece in pieces(brief_run.path):
            if name != "outcomes.npz":
                receive(folder, name, piece)
        with pytest.raises(RecordError, match=r"arrived incomplete: outcomes\.npz: missing"):
            adopt(folder, tmp_path)
    for name in ("../elsewhere", "/elsewhere", "a/../../b", "C:\\x", "."):
        with pytest.raises(RecordError, match="cannot be called"):
            receive(tmp_path, name, b"x")
    (tmp_path / FOLDER / "dead").mkdir(parents=True)
    clear_arrivals(tmp_path)
    assert list(tmp_path.iterdir()) == []
