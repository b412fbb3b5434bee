"""Removable parts of a runs directory: provably unfinished runs, and leftovers of killed processes."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.inventory import entry_of, run_directories
from leaderboards.records.layout import (
    CHECKPOINT,
    CHECKSUMS,
    LOCK,
    LOG,
    RECORD,
    TENSORBOARD,
    WANDB,
    files_below,
    natural,
    temporary_for,
    temporary_of,
)
from leaderboards.records.limits import check_plain
from leaderboards.records.lock import RunBusyError, hold, is_alive, signature
from leaderboards.records.manifest import read_manifest

What = Literal["unfinished run", "empty directory", "leftover checkpoint", "temporary file"]


@dataclass(frozen=True)
class Garbage:
    """Something removable: its path, what it is, its size in bytes, and the run whose lock protects it."""

    path: Path
    what: What
    size: int
    run: Path | None = None


def find_garbage(runs_dir: Path) -> list[Garbage]:
    """Everything removable, by name: never a run with a record or files that a live process may still write.

    An unfinished run counts if its manifest can be read or, without a manifest, if it contains at most a log
    of this program. File times are not considered.

    Raises:
        RecordError: there is no such directory, or it cannot be read.
    """
    found: list[Garbage] = []
    for path in run_directories(runs_dir):
        # Skip paths that cannot be read, and paths that another process is removing.
        with contextlib.suppress(OSError):
            found += list(_of_directory(path))
    strays = [Garbage(path, "temporary file", size_of(path)) for path in _strays(Path(runs_dir).iterdir())]
    return found + sorted(strays, key=lambda garbage: natural(garbage.path))


def size_of(path: Path) -> int:
    """The bytes of a file or of all files below a directory; links are not followed."""
    total = 0
    for one in files_below(path) if path.is_dir() and not path.is_symlink() else [path]:
        # Skip files that other processes remove meanwhile.
        with contextlib.suppress(OSError):
            total += one.lstat().st_size
    return total


def remove(garbage: Garbage) -> bool:
    """Remove it while holding its run's lock; False if it has changed or another process uses it.

    Raises:
        RecordError: it cannot be removed.
    """
    try:
        with os_errors(f"cannot remove {garbage.path}"):
            return _remove(garbage)
    except RecordError as error:
        if isinstance(error, RunBusyError) or isinstance(error.__cause__, FileNotFoundError):
            return False
        raise


def _of_directory(path: Path) -> Iterator[Garbage]:
    if path.is_symlink():
        return
    if not any(path.iterdir()):
        yield Garbage(path, "empty directory", 0)
        return
    entry = entry_of(path)
    if entry is None or entry.state == "running":
        return
    if entry.state == "unfinished" and _abandoned(path) and not _maker_lives(path):
        yield Garbage(path, "unfinished run", size_of(path), path)
    elif (path / RECORD).exists():
        for stray in sorted(_strays(files_below(path))):
            yield Garbage(stray, "temporary file", size_of(stray), path)
        if entry.state == "complete" and (path / CHECKPOINT).is_dir():
            yield Garbage(path / CHECKPOINT, "leftover checkpoint", size_of(path / CHECKPOINT), path)


def _abandoned(path: Path) -> bool:
    """Whether the run was never finished, given that no other process holds it."""
    # Checksums are written last before the record: a run that has them was finished and lost its record.
    if any((path / name).exists() for name in (RECORD, CHECKSUMS)):
        return False
    try:
        read_manifest(path)
    except RecordError as error:
        # A manifest that cannot be read may be from a newer version, or not belong to a run at all.
        return isinstance(error.__cause__, FileNotFoundError) and _bare(path)
    return True


def _bare(path: Path) -> bool:
    """Whether a directory contains at most a log of this program."""
    names = {one.name for one in path.iterdir() if temporary_of(one.name) is None}
    if not names or names - {LOG, LOCK, TENSORBOARD, WANDB}:
        return False
    return _our_log(path / LOG) if LOG in names else names == {LOCK} and signature(path) is not None


def _our_log(path: Path) -> bool:
    try:
        check_plain(path)
        with path.open(encoding="utf-8") as file:
            first = file.readline(1_000_000)
        if not first:
            return signature(path.parent) is not None
        return {"time", "kind", "stage"} <= set(json.loads(first))
    except (OSError, ValueError, TypeError):
        return False


def _maker_lives(path: Path) -> bool:
    """Whether the process that made a directory may be about to write its manifest."""
    with contextlib.suppress(RecordError):
        read_manifest(path)
        return False
    signed = signature(path)
    if signed is None:
        # An empty lock means that its maker is just signing; without a lock, the run predates signatures.
        return (path / LOCK).exists()
    return signed[1] != socket.gethostname() or is_alive(signed[0])


def _strays(paths: Iterator[Path]) -> Iterator[Path]:
    """Temporary files and half-removed runs of processes that are no longer alive."""
    for path in paths:
        maker = temporary_of(path.name)
        if maker is not None and not is_alive(maker):
            yield path


def _remove(garbage: Garbage) -> bool:
    path = garbage.path
    if garbage.what == "empty directory":
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()
    if garbage.run is None:
        _delete(path)
        return True
    with hold(garbage.run):
        if garbage.what != "unfinished run":
            if not (garbage.run / RECORD).exists():
                return False
            _delete(path)
            return True
        if not _abandoned(path):
            return False
        hidden = temporary_for(path)
        if os.name == "posix":
            # Rename in one step, under the lock: other processes find the whole run or nothing.
            path.rename(hidden)
    if os.name != "posix":
        # Windows cannot rename open files: this fails if another process has just taken the run.
        path.rename(hidden)
    _delete(hidden)
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
