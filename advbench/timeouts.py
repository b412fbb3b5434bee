"""A limit on how long one attack may take, also where it cannot be interrupted."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 5.0
"""Seconds after the limit until the process is ended, if what runs cannot be interrupted."""
AGAIN = 0.5
"""Seconds between alarms: one that is raised where exceptions are dropped must not be the last."""
FAILED = 1
"""The exit code of a run that failed."""


class AttackTimeoutError(RuntimeError):
    """An attack took longer than it may; says which, and where."""


class _Alarm(BaseException):
    """Not an Exception: an attack that catches those must not catch this."""


@contextmanager
def limited(seconds: float | None, what: str) -> Iterator[None]:
    """Stop what runs inside after so many seconds; None sets no limit.

    In the main thread it is interrupted by a timer (``SIGALRM``, where the system has it). Code that does
    not react, because it is no Python or catches everything, is ended together with the process, after one
    line that says ``what`` it was.

    Raises:
        AttackTimeoutError: the time is over.
    """
    if seconds is None:
        yield
        return
    message = f"{what} did not end within {seconds:g} s (--attack-timeout)"
    watchdog = threading.Timer(seconds + GRACE, _end, [message])
    watchdog.daemon = True
    watchdog.start()
    try:
        with _alarm(seconds):
            yield
    except _Alarm:
        raise AttackTimeoutError(message) from None
    finally:
        watchdog.cancel()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def ring(_number: int, _frame: FrameType | None) -> None:
        if not over:
            raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        yield
    finally:
        # First, so that an alarm on the way out is no longer raised.
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _end(message: str) -> None:
    """From another thread: whatever runs cannot be interrupted."""
    print(f"error: {message} and cannot be interrupted: the process ends", file=sys.stderr, flush=True)
    os._exit(FAILED)
