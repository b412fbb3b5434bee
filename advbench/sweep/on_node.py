"""Runs one cell on a node of a cluster and sends its files."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from advbench.runtime.reasons import reason
from advbench.sweep.one_run import Job, perform
from advbench.sweep.transfer import pieces
from leaderboards import RecordError
from leaderboards.records.lock import hold

Message = tuple[Any, ...]


def messages(job: Job, make: Callable[[Job, Path], Path] = perform) -> Iterator[Message]:
    """Run a cell: yield ``("begin", host)``, then its files in pieces or ``("failed", reason)``.

    Args:
        job: the cell.
        make: runs it in a directory of runs and returns the run's directory.
    """
    yield "begin", socket.gethostname()
    with workplace(job.identity) as folder:
        try:
            path = make(job, folder)
        except (Exception, SystemExit) as error:
            yield "failed", reason(error)
            return
        for name, piece in pieces(path):
            yield "piece", name, piece
        shutil.rmtree(folder, ignore_errors=True)
    yield ("whole",)


@contextlib.contextmanager
def workplace(identity: str) -> Iterator[Path]:
    """The directory where a node runs a cell: always the same one, so that a lost task's work is resumed.

    If another task runs the same cell, or the directory is another user's, a temporary directory is used.
    """
    owner = os.getuid() if os.name == "posix" else 0
    place = Path(tempfile.gettempdir()) / f"advbench-{owner}" / identity
    with contextlib.ExitStack() as stack:
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            if place.parent.is_symlink() or place.parent.stat().st_uid != owner:
                raise PermissionError(f"{place.parent} belongs to another user")
            place.mkdir(mode=0o700, exist_ok=True)
            stack.enter_context(hold(place))
        except (OSError, RecordError):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="advbench-")))
        yield place
