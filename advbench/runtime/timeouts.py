"""Time limits for an attack or a whole verification, even for code that cannot be interrupted."""

from __future__ import annotations

import functools
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
"""Seconds after the limit until the process is ended, if the code cannot be interrupted."""
AGAIN = 0.5
"""Seconds between alarms, which repeat in case code drops the exception of one."""
FAILED, REFUSED = 1, 2
"""The exit codes of a failed run, and of a request that cannot be fulfilled."""


class AttackTimeoutError(RuntimeError):
    """An attack exceeded its time limit; the message says which attack, and where."""


class _Alarm(BaseException):
    """Raised by the timer; not an Exception, so that an attack that catches those does not catch it."""


@contextmanager
def limited(
    seconds: float | None,
    what: str,
    *,
    option: str = "--attack-timeout",
    error: type[Exception] = AttackTimeoutError,
    leave: Callable[[], None] = lambda: None,
    code: int = FAILED,
) -> Iterator[None]:
    """Stop the code within the block after ``seconds``; None sets no limit.

    In the main thread a timer interrupts it (``SIGALRM``, if the system has it). Code that does not react,
    because it is not Python or catches everything, is ended together with the process, with exit code
    ``code``, after ``leave`` has removed its files and one line has named ``what`` it was and the ``option``.

    Raises:
        AttackTimeoutError: the time is over; another ``error`` if one is given.
    """
    if seconds is None:
        yield
        return
    message = f"{what} did not end within {seconds:g} s ({option})"
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


limited_verification = functools.partial(limited, option="--timeout", error=InputError, code=REFUSED)
"""The same for a verification: it raises `InputError`."""


def timed(attack: Attack, seconds: float | None) -> Attack:
    """The same attack with a time limit per call, which raises `AttackTimeoutError`; None sets no limit."""
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
        # Set this first, so that no alarm is raised while leaving the block.
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _end(message: str, leave: Callable[[], None], code: int) -> None:
    """End the process from another thread, because the running code cannot be interrupted."""
    line = f"error: {message} and cannot be interrupted: the process ends"
    print(printable(line), file=sys.stderr, flush=True)
    try:
        leave()
    finally:
        os._exit(code)


def check_timeout(seconds: float | None, name: str = "attack-timeout") -> None:
    """Refuse an invalid time limit.

    Raises:
        InputError: it is not above 0, or not finite.
    """
    most = threading.TIMEOUT_MAX - GRACE
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= most):
        raise InputError(f"{name}={seconds:g} must be a number of seconds above 0, and at most {most:.0f}")
