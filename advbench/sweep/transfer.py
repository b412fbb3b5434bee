"""Transfers runs from other machines: in pieces, stored completely or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from leaderboards import RecordError, new_run_directory, read_record, write_bytes
from leaderboards.records.checksums import verify_checksums, write_checksums
from leaderboards.records.layout import LOCK, RECORD
from leaderboards.records.lock import hold, is_held
from leaderboards.records.manifest import read_manifest, write_manifest
from leaderboards.records.store import json_bytes

FOLDER = ".arriving"
"""The subdirectory of the runs directory for incoming runs, deep enough that none counts as a run."""
PIECE = 4 * 2**20
"""The bytes of a piece."""


def pieces(run_dir: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a finished run, as ordered pieces with names relative to the run."""
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.is_file() and name != LOCK:
            with path.open("rb") as file:
                # An empty file gives one empty piece.
                yield name, file.read(PIECE)
                while piece := file.read(PIECE):
                    yield name, piece


@contextlib.contextmanager
def arrival(runs_dir: Path) -> Iterator[Path]:
    """A temporary directory in the store, for one run; it is removed when the block ends.

    Raises:
        RecordError: the directory cannot be written.
    """
    path = runs_dir / FOLDER / secrets.token_hex(8)
    try:
        path.mkdir(parents=True)
        with hold(path):
            yield path
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror or type(error).__name__}") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def clear_arrivals(runs_dir: Path) -> None:
    """Remove incomplete runs of processes that have ended."""
    folder = runs_dir / FOLDER
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if not is_held(path):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def receive(folder: Path, name: str, piece: bytes) -> None:
    """Append a piece to a file below ``folder``.

    Raises:
        RecordError: the name leads out of ``folder``.
        OSError: the file cannot be written.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).anchor or ".." in path.parts or not path.parts:
        raise RecordError(f"a file of a run cannot be called {name!r}")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def adopt(folder: Path, runs_dir: Path) -> Path:
    """Move a received run to the store, under its name, with a number if needed; its record comes last.

    Raises:
        RecordError: files are missing or changed, or the store cannot be written.
    """
    if problems := verify_checksums(folder):
        raise RecordError(f"the run arrived incomplete: {problems[0]}")
    content, record = (folder / RECORD).read_bytes(), read_record(folder)
    target = new_run_directory(runs_dir, record.id)
    if target.name != record.id:
        content = json_bytes(record.model_copy(update={"id": target.name}).dump())
        write_manifest(folder, read_manifest(folder).model_copy(update={"id": target.name}))
        write_checksums(folder, content)
    with hold(target):
        for path in sorted(folder.iterdir()):
            if path.name not in (RECORD, LOCK):
                os.rename(path, target / path.name)
        write_bytes(target / RECORD, content)
    return target
