"""Runs one cell, on any machine, with checks before and during the run."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.runtime.events import Event, Listener
from attacks_pool.errors import InputError
from leaderboards import RecordError
from leaderboards.records.inventory import RunEntry, entry_of, run_directories
from leaderboards.records.manifest import read_manifest


@dataclass(frozen=True)
class Job:
    """A cell in the form that is sent to a worker, with plain values only."""

    number: int
    options: dict[str, Any]
    sample_seed: int
    identity: str
    attack_timeout: float | None = None


def perform(job: Job, runs_dir: Path, listeners: Sequence[Listener] = ()) -> Path:
    """Run a cell, or resume its unfinished run; return the run's directory.

    Raises:
        InputError: it cannot be run here, or the run would differ from the planned one.
        RecordError: another process runs it, or the store cannot be written.
        TrainingDivergedError, RunFailedError: it failed before its end.
    """
    return finished(job, runs_dir) or make(job, runs_dir, listeners)


def finished(job: Job, runs_dir: Path) -> Path | None:
    """The directory of a cell's complete run, if there is one.

    Raises:
        RecordError: another process runs it.
    """
    for entry in _same(runs_dir, job.identity):
        if entry.state == "complete":
            return entry.path
        if entry.state == "running":
            raise RecordError(f"run {entry.id} is being written by another process")
    return None


def make(job: Job, runs_dir: Path, listeners: Sequence[Listener] = ()) -> Path:
    """Run a cell that has no complete run, like :func:`perform`."""
    from advbench.benchmark.run import run

    def heard(event: Event) -> None:
        if event.kind == "start" and read_manifest(runs_dir / event.text).identity != job.identity:
            raise InputError(
                f"{socket.gethostname()} would make another run than the one planned: its advbench, torch or "
                "device differs, or files changed meanwhile"
            )

    done = run(
        runs_dir=runs_dir,
        listeners=[heard, *listeners],
        sample_seed=job.sample_seed,
        attack_timeout=job.attack_timeout,
        **job.options,
    )
    return done.path


def _same(runs_dir: Path, identity: str) -> list[RunEntry]:
    """The runs with an identity in a store, complete ones first."""
    found = []
    for path in run_directories(runs_dir) if runs_dir.is_dir() else []:
        try:
            same = read_manifest(path).identity == identity
        except RecordError:
            continue
        if same and (entry := entry_of(path)) is not None:
            found.append(entry)
    return sorted(found, key=lambda entry: entry.state != "complete")
