"""A sweep on a Ray cluster of two nodes that the test starts and stops itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import TINY, records_of

from advbench import run
from advbench.benchmark.prepare import prepare
from advbench.cli.main import invoke
from advbench.runtime.events import Event
from advbench.sweep.cluster import Resources, _task
from advbench.sweep.on_node import workplace
from advbench.sweep.one_run import Job, perform
from advbench.sweep.transfer import FOLDER
from leaderboards import comparable, find_records
from leaderboards.records.checksums import verify_checksums

pytest.importorskip("ray", reason="ray is not installed: pip install 'advbench[ray]'")

CELLS = [("at", 0), ("air", 0), ("air", 1)]
SMALL = 80_000_000
"""Bytes of a node's object store."""
PATIENCE = 300.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "object_store_memory": SMALL, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=1, object_store_memory=SMALL)
            yield cluster.address
        finally:
            cluster.shutdown()


def start(*command: str) -> subprocess.Popen[str]:
    """An advbench command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "advbench", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


class Stop(BaseException):
    """Stands for the death of a task."""


@pytest.mark.usefixtures("short_probes")
def test_what_a_lost_task_has_finished_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same node; what was sent is removed there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = {**TINY, "defense": "at", "seed": 0}
    job = Job(1, options, 0, prepare(options).identity)

    def die(event: Event) -> None:
        if event.kind == "cell" and event.stage == 1:
            raise Stop

    with pytest.raises(Stop), workplace(job.identity) as folder:
        perform(job, folder, [die])
    with workplace(job.identity) as folder, workplace(job.identity) as other:
        assert folder != other
    sent = list(_task(job, Resources()))
    assert (sent[0][0], sent[-1]) == ("begin", ("whole",))
    log = b"".join(message[2] for message in sent if message[:2] == ("piece", "log.jsonl"))
    kinds = [json.loads(line)["kind"] for line in log.splitlines()]
    assert [kind for kind in kinds if kind in ("start", "resume", "end")] == ["start", "resume", "end"]
    assert not list(tmp_path.glob("*/*"))


def times(runs_dir: Path) -> dict[Path, int]:
    """When each file of a finished run was written."""
    finished = [path.parent for path in runs_dir.glob("*/record.json")]
    return {file: file.stat().st_mtime_ns for path in finished for file in path.rglob("*")}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_records_are_the_local_ones(address: str, tmp_path: Path) -> None:
    """Cell for cell; nothing that had come back is repeated, and nothing is left half received."""
    grid, runs_dir = tmp_path / "grid.yaml", tmp_path / "runs"
    without = [{"defense": "at", "seed": 1}]
    grid.write_text(yaml.safe_dump({**TINY, "defenses": ["at", "air"], "seeds": 2, "exclude": without}))
    command = ["sweep", str(grid), "--runs-dir", str(runs_dir), "--ray", address]
    process = start(*command)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.rstrip().endswith("left)") or "  failed" in line:
            break
    process.kill()
    process.communicate(timeout=PATIENCE)
    before = times(runs_dir)
    assert before, said
    assert 0 < len(records_of(runs_dir)) < len(CELLS)
    again = start(*command)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert f"{len(CELLS)} of {len(CELLS)} runs complete" in out
    after = times(runs_dir)
    assert {file: after[file] for file in before} == before
    assert not (runs_dir / FOLDER).exists()
    for defense, seed in CELLS:
        run(defense, runs_dir=tmp_path / "here", seed=seed, **TINY)
    assert records_of(runs_dir) == records_of(tmp_path / "here")
    for here in (tmp_path / "here").iterdir():
        # Weights too, bit for bit.
        name = here.name.partition("-")[2].partition("-")[2]
        [there] = [path for path in runs_dir.iterdir() if path.name.endswith(name)]
        assert verify_checksums(there) == []
        for weights in ("model.safetensors", "stages/0.safetensors", "stages/1.safetensors"):
            assert (there / weights).read_bytes() == (here / weights).read_bytes()


@pytest.mark.slow
def test_two_processes_train_a_cell_and_a_killed_sweep_goes_on(address: str, tmp_path: Path) -> None:
    """Of two nodes; the record is the one that torchrun with two processes makes."""
    pytest.importorskip("ray.train", reason="pip install 'advbench[ray]'", exc_type=ImportError)
    options = {**TINY, "defense": "at", "sequence": "fgsm,pgd:steps=5", "epochs": 8, "points": 60}
    grid, runs_dir = tmp_path / "grid.yaml", tmp_path / "runs"
    grid.write_text(yaml.safe_dump(options))
    command = ["sweep", str(grid), "--runs-dir", str(runs_dir), "--ray", address, "--processes-per-run", "2"]
    with workplace(prepare(options, processes=2).identity) as folder:
        place = folder
    first = start(*command)
    until = time.monotonic() + PATIENCE
    while not any('"cell"' in log.read_text() for log in place.glob("*/log.jsonl")):
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    first.kill()
    first.communicate(timeout=PATIENCE)
    assert not runs_dir.exists()
    again = start(*command)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert "1 of 1 run complete" in out
    [done] = runs_dir.glob("*/log.jsonl")
    kinds = [json.loads(line)["kind"] for line in done.read_text().splitlines()]
    assert [kind for kind in kinds if kind in ("start", "resume", "end")] == ["start", "resume", "end"]
    flags = ["--defense", "at", "--sequence", options["sequence"], "--unseen", "none", "--epochs", "8"]
    flags += ["--set", "pretrain.epochs=1", "--set", "eps_warmup=0", "--points", "60", "--threads", "1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    flags += ["--device", "cpu", "--runs-dir", str(tmp_path / "torchrun")]
    subprocess.run([*launcher, "advbench", "run", *flags], check=True, capture_output=True, timeout=PATIENCE)
    expected = records_of(tmp_path / "torchrun")
    assert records_of(runs_dir) == expected
    assert next(iter(expected.values()))["environment"]["processes"] == 2


def test_no_cluster_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing answers there: exit code 2, nothing written."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**TINY, "defense": "at"}))
    assert invoke(["sweep", str(grid), "--runs-dir", str(tmp_path / "runs"), "--ray", "127.0.0.1:1"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "--ray 127.0.0.1:1: nothing answers there" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_evaluation_is_shared(address: str, tmp_path: Path) -> None:
    """Its pieces come from the cluster, and the numbers are those of one process."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    program = torch.export.export(
        model.eval(), (torch.zeros(4, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    command = ["eval", "--model", str(tmp_path / "model.pt2"), "--attacks", "fgsm,pgd:steps=2", "--trust"]
    command += ["--points", "20", "--threads", "1", "--surrogate", "none", "--device", "cpu", "--runs-dir"]
    assert invoke([*command, str(tmp_path / "here")]) == 0
    process = start(*command, str(tmp_path / "there"), "--ray", address, "--workers", "2")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "a task failed" not in err
    here, there = (find_records(tmp_path / name)[0] for name in ("here", "there"))
    assert comparable(here[0]) == comparable(there[0])
