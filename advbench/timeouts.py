"""A limit on how long one attack may take, also where it cannot be interrupted."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from attacks_pool import Attack, InputError

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


def timed(attack: Attack, seconds: float | None) -> Attack:
    """The same attack, which raises `AttackTimeoutError` where one call takes longer; None: never."""
    if seconds is None:
        return attack
    return replace(attack, within=lambda: limited(seconds, f"attack {attack.name!r} on a batch of training"))


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


def check_timeout(seconds: float | None) -> None:
    """Refuse a limit that is none.

    Raises:
        InputError: it is not above 0, or not finite.
    """
    most = threading.TIMEOUT_MAX - GRACE
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= most):
        raise InputError(
            f"attack-timeout={seconds:g} must be a number of seconds above 0, and at most {most:.0f}"
        )
