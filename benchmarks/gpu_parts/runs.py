"""Whole runs on the device: under torchrun, and stopped and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import kill
import torch
import torch.distributed as dist

from gpu_parts.report import Report
from leaderboards import comparable, read_record

COMMON = [
    *("--sequence", "fgsm,pgd:steps=2", "--unseen", "none", "--points", "20"),
    *("--set", "pretrain.epochs=1", "--set", "batch_size=256"),
]
QUICK = ["--defense", "at", "--epochs", "1"]
STATEFUL = ["--defense", "air", "--epochs", "2"]
"""A defense whose second stage needs the network of the first."""
DIES_AT = 12
"""The file whose writing kills the run, in its first stage."""


def processes(report: Report) -> None:
    """One rank: an all-reduce, and a run under torchrun that gives the record of a run without."""
    backend = "nccl" if report.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group(backend, init_method=f"file://{place}/meeting", rank=0, world_size=1)
        try:
            values = torch.arange(1000.0, device=report.device)
            dist.all_reduce(values)
            holds = torch.equal(values.cpu(), torch.arange(1000.0))
        finally:
            dist.destroy_process_group()
        report.check(f"all-reduce by {backend}", holds, "right sum" if holds else "wrong sum", "right sum")
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        shared = launched(report, torchrun, Path(place) / "torchrun")
        alone = launched(report, [], Path(place) / "alone")
        if shared is not None and alone is not None:
            same = comparable(read_record(shared)) == comparable(read_record(alone))
            report.check("record under torchrun", same, "equal" if same else "different", "equal")


def launched(report: Report, launcher: list[str], runs_dir: Path) -> Path | None:
    """The directory of the run that a command of its own makes, or None if it fails."""
    source = Path(kill.__file__).resolve().parents[1]
    # Without OMP_NUM_THREADS, torchrun gives its processes one thread.
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "advbench", *words(report, runs_dir, QUICK)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        name = "run under torchrun" if launcher else "run without torchrun"
        report.check(name, False, f"code {done.returncode}: {last}", "code 0")
        return None
    return kill.complete(runs_dir)[0]


def words(report: Report, runs_dir: Path, defense: list[str]) -> list[str]:
    """The arguments of the command."""
    place = ["--device", str(report.device), "--threads", "1", "--runs-dir", str(runs_dir)]
    return ["run", *defense, *COMMON, *place]


def resume(report: Report) -> None:
    """A run that is killed in the middle and resumed gives the record and the weights of one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        log = place / "output.txt"
        whole, stopped = (words(report, place / name, STATEFUL) for name in ("whole", "stopped"))
        code = kill.wait(kill.start(whole, log))
        report.check("uninterrupted run", code == 0, f"code {code}", "code 0")
        code = kill.wait(kill.start(stopped, log, die_after=DIES_AT))
        report.check("killed run", code < 0, f"code {code}", "killed by a signal")
        code = kill.wait(kill.start(stopped, log))
        report.check("resumed run", code == 0, f"code {code}", "code 0")
        finished, expected = (kill.complete(place / name) for name in ("stopped", "whole"))
        if finished and expected:
            found = kill.differences(finished[0], expected[0])
            report.check("differences", not found, ", ".join(found) or "none", "none")
        else:
            report.figure("output", log.read_text()[-500:])
