"""The lock of the process that writes a run, which the system releases when the process dies."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leaderboards.errors import RecordError
from leaderboards.records.layout import LOCK, RECORD
from leaderboards.records.limits import read_bounded

TRIES: Final = 100
"""How often locking is retried while other processes only check whether the lock is held."""

if sys.platform == "win32":
    import msvcrt

    # Lock a byte far behind the text, so that others can read the text.
    _PLACE: Final = 1 << 30

    def _lock(descriptor: int, *, shared: bool = False) -> bool:
        del shared  # Windows has only one kind of lock
        os.lseek(descriptor, _PLACE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _PLACE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class RunBusyError(RecordError):
    """Another process, or another holder in this one, is writing the run."""


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Hold the exclusive right to write a run directory, until the block ends or the process dies.

    The file ``.lock`` stays in an unfinished run and has no effect once its process has ended; in a run with
    a record it is removed.

    Raises:
        RunBusyError: another process or another holder in this process holds it.
        RecordError: there is no such directory, or it cannot be written.
    """
    run_dir = Path(run_dir)
    path = run_dir / LOCK
    try:
        descriptor = _acquire(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"no run directory at {run_dir}") from error
    except OSError as error:
        raise RecordError(f"cannot lock run {run_dir}: {error.strerror or type(error).__name__}") from error
    try:
        yield
    finally:
        done = (run_dir / RECORD).exists()
        with contextlib.suppress(OSError):
            # Remove the file before releasing it: the next holder then notices that the file has changed.
            if done and sys.platform != "win32":
                path.unlink()
        _unlock(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):
            if done and sys.platform == "win32":
                path.unlink()


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _take(descriptor):
                raise RunBusyError(_busy(path))
            if _is_file(descriptor, path):
                with contextlib.suppress(OSError):  # the signature is optional, in case the disk is full
                    _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The last holder removed the file between opening and locking.
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Lock for writing; retry while other processes share the lock for an instant to check it."""
    for _ in range(TRIES):
        if _lock(descriptor):
            return True
        if not _lock(descriptor, shared=True):
            return False
        _unlock(descriptor)
        time.sleep(0.01)
    return False


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())


def _busy(path: Path) -> str:
    found = signature(path.parent)
    who = "another process" if found is None else f"process {found[0]} on {found[1]}"
    return f"run {path.parent.name} is being written by {who}: wait for it or stop it"


def claim(run_dir: Path) -> None:
    """Sign a run directory that was just made, so that its maker is known before it holds the lock.

    Raises:
        FileNotFoundError: the directory was removed again.
        OSError: the directory cannot be written.
    """
    descriptor = os.open(Path(run_dir) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _sign(descriptor)
    finally:
        os.close(descriptor)


def signature(run_dir: Path) -> tuple[int, str] | None:
    """The process and host that last held a run; None if unknown."""
    try:
        process, host = read_bounded(Path(run_dir) / LOCK).decode().split()
        return int(process), host
    except (OSError, ValueError):
        return None


def is_held(run_dir: Path) -> bool:
    """Whether a live process is writing the run; True if that cannot be determined."""
    try:
        # If the file is a pipe, opening it could block for ever.
        descriptor = os.open(Path(run_dir) / LOCK, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        if not _lock(descriptor, shared=True):
            return True
        _unlock(descriptor)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is alive; True if that cannot be determined."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
