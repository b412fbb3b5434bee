"""One cell, wherever it is run: what is sent there, and what is checked before and while it runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.runtime.events import Event
from attacks_pool.errors import InputError
from leaderboards import RecordError
from leaderboards.records.inventory import RunEntry, entry_of, run_directories
from leaderboards.records.manifest import read_manifest

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Job:
    """A cell as it is sent to whoever runs it; plain values only."""

    number: int
    options: dict[str, Any]
    sample_seed: int
    identity: str
    attack_timeout: float | None = None


def perform(job: Job, runs_dir: Path, listeners: Sequence[Listener] = ()) -> Path:
    """Run a cell, or go on with its unfinished run; returns the run's directory.

    Raises:
        InputError: it cannot be run here, or would not be the run that was planned.
        RecordError: another process is at it, or the store cannot be written.
        TrainingDivergedError, RunFailedError: it did not get to its end.
    """
    from advbench.benchmark.run import run

    for entry in _same(runs_dir, job.identity):
        if entry.state == "complete":
            return entry.path
        if entry.state == "running":
            raise RecordError(f"run {entry.id} is being written by another process")

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
    """The runs of an identity in a store, complete ones first."""
    found = []
    for path in run_directories(runs_dir) if runs_dir.is_dir() else []:
        try:
            same = read_manifest(path).identity == identity
        except RecordError:
            continue
        if same and (entry := entry_of(path)) is not None:
            found.append(entry)
    return sorted(found, key=lambda entry: entry.state != "complete")
