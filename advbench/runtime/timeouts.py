"""A limit on how long an attack, or a whole verification, may take, also where it cannot be interrupted."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from attacks_pool import Attack, InputError
from leaderboards.printable import printable

GRACE = 5.0
"""Seconds after the limit until the process is ended, if what runs cannot be interrupted."""
AGAIN = 0.5
"""Seconds between alarms: one that is raised where exceptions are dropped must not be the last."""
FAILED, REFUSED = 1, 2
"""The exit codes of a run that failed, and of what cannot be done as it was asked."""


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
    message = f"{what} did not end within {seconds or 0:g} s (--attack-timeout)"
    with _stopped(seconds, message, AttackTimeoutError, lambda: None, FAILED):
        yield


@contextmanager
def limited_verification(
    seconds: float | None, what: str, *, leave: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The same for a verification; ``leave`` removes what it made if the process must be ended.

    Raises:
        InputError: the time is over.
    """
    message = f"{what} did not end within {seconds or 0:g} s (--timeout)"
    with _stopped(seconds, message, InputError, leave, REFUSED):
        yield


@contextmanager
def _stopped(
    seconds: float | None, message: str, error: type[Exception], leave: Callable[[], None], code: int
) -> Iterator[None]:
    if seconds is None:
        yield
        return
    watchdog = threading.Timer(seconds + GRACE, _end, [message, leave, code])
    watchdog.daemon = True
    watchdog.start()
    try:
        with _alarm(seconds):
            yield
    except _Alarm:
        raise error(message) from None
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


def _end(message: str, leave: Callable[[], None], code: int) -> None:
    """From another thread: whatever runs cannot be interrupted."""
    line = f"error: {message} and cannot be interrupted: the process ends"
    print(printable(line), file=sys.stderr, flush=True)
    try:
        leave()
    finally:
        os._exit(code)


def check_timeout(seconds: float | None, name: str = "attack-timeout") -> None:
    """Refuse a limit that is none.

    Raises:
        InputError: it is not above 0, or not finite.
    """
    most = threading.TIMEOUT_MAX - GRACE
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= most):
        raise InputError(f"{name}={seconds:g} must be a number of seconds above 0, and at most {most:.0f}")
