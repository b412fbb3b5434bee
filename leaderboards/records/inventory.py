"""The contents of a runs directory: finished, running, unfinished and damaged runs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.layout import EVALUATED, LOCK, LOG, RECORD, STAGES, natural
from leaderboards.records.lock import is_held
from leaderboards.records.manifest import Manifest, read_manifest
from leaderboards.records.record import Record
from leaderboards.records.store import read_record, run_paths
from leaderboards.records.trust import Trust, trust_of

State = Literal["complete", "running", "unfinished", "damaged"]


@dataclass(frozen=True)
class RunEntry:
    """One run directory.

    Attributes:
        path: the directory.
        id: its name.
        state: ``complete`` has a readable record; ``running`` has no record yet, and a live process writes
            it; ``unfinished`` has neither record nor process; ``damaged`` cannot be read: see ``problem``.
        kind: ``run`` or ``eval``; empty if unknown.
        identity: the manifest's identity; empty without a manifest.
        summary: the finished part: ``stage 2 of 3``.
        problem: one line; empty if there is no problem.
        subject: the defense or the evaluated model.
        dataset: the name of the data set.
        trust: how far a finished run was verified: see `leaderboards.records.trust`.
    """

    path: Path
    id: str
    state: State
    kind: str
    identity: str
    summary: str
    problem: str = ""
    subject: str = ""
    dataset: str = ""
    trust: Trust | None = None


def inventory(runs_dir: Path) -> list[RunEntry]:
    """The runs of a directory, sorted by name with numbers by value; other entries are skipped.

    Raises:
        RecordError: there is no such directory, or it cannot be read.
    """
    return [entry for path in run_directories(runs_dir) if (entry := entry_of(path)) is not None]


def run_directories(runs_dir: Path) -> list[Path]:
    """The directories in a runs directory, by name, without hidden ones, which are temporary.

    Raises:
        RecordError: there is no such directory, or it cannot be read.
    """
    paths = [path for path in map(Path, run_paths(runs_dir)) if not path.name.startswith(".")]
    with os_errors(f"cannot read runs directory {runs_dir}"):
        return sorted(filter(Path.is_dir, paths), key=natural)


def entry_of(path: Path) -> RunEntry | None:
    """The entry of a directory; None if it contains no part of a run."""
    # Check the lock first: a run that finishes meanwhile then counts as running or complete, not abandoned.
    held = is_held(path)
    manifest, problem = _manifest(path)
    try:
        record = read_record(path / RECORD)
    except RecordError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            return _entry(path, "damaged", manifest, problem=str(error))
    else:
        return _entry(path, "complete", manifest, record=record)
    if held:
        return _entry(path, "running", manifest)
    if problem:
        return _entry(path, "damaged", None, problem=problem)
    if manifest is None and not any((path / name).exists() for name in (LOG, LOCK)):
        return None
    return _entry(path, "unfinished", manifest)


def find_unfinished(runs_dir: Path, identity: str) -> list[Path]:
    """The runs with an identity that have no record and that no process holds, oldest name first.

    Another process may take one at any moment, so lock a run before resuming it.

    Raises:
        RecordError: see `inventory`.
    """
    return _find(runs_dir, identity, "unfinished")


def find_complete(runs_dir: Path, identity: str) -> list[Path]:
    """The finished runs with an identity, by name.

    Raises:
        RecordError: see `inventory`.
    """
    return _find(runs_dir, identity, "complete")


def _find(runs_dir: Path, identity: str, state: State) -> list[Path]:
    found = []
    for path in run_directories(runs_dir):
        # Manifests are small; read a record only if the identity matches.
        manifest, _ = _manifest(path)
        if manifest is not None and manifest.identity == identity:
            entry = entry_of(path)
            if entry is not None and entry.state == state:
                found.append(path)
    return found


def _manifest(path: Path) -> tuple[Manifest | None, str]:
    """The manifest, if there is one, and its fault, if any."""
    try:
        return read_manifest(path), ""
    except RecordError as error:
        missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        return None, "" if missing else str(error)


def _entry(
    path: Path, state: State, manifest: Manifest | None, *, record: Record | None = None, problem: str = ""
) -> RunEntry:
    kind, config = ("", {}) if manifest is None else (str(manifest.kind), manifest.config)
    if record is not None:
        kind, config = EVALUATED if record.regime == EVALUATED else "run", record.config
        summary = _measured(record)
    else:
        summary = _progress(path, config) if kind == "run" else ""
    return RunEntry(
        path=path,
        id=path.name,
        state=state,
        kind=kind,
        identity="" if manifest is None else manifest.identity,
        summary=summary,
        problem=problem,
        subject=str(config.get("defense", "")),
        dataset=str(config.get("dataset", "")),
        trust=None if record is None else trust_of(path),
    )


def _measured(record: Record) -> str:
    trained = sum(stage.index > 0 for stage in record.stages)
    attacks = _count(len(record.attacks), "attack")
    return attacks if record.regime == EVALUATED else f"{_count(trained, 'stage')}, {attacks}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _progress(path: Path, config: dict[str, Any]) -> str:
    """How many stages are finished, judged by their weights, which are written once a stage is measured."""
    sequence = config.get("sequence")
    if not isinstance(sequence, list):
        return ""
    total = len(sequence) if config.get("regime") == "continual" else 1
    try:
        names = [file.name for file in (path / STAGES).iterdir()]
    except OSError:
        names = []
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(r"(\d+)\.safetensors", name))]
    return f"stage {max(numbers)} of {total}" if numbers else f"pretraining, {_count(total, 'stage')} to go"
