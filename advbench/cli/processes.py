"""The command line in several processes, which ``torchrun`` started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from advbench.cli.echo import warn
from advbench.runtime.interrupts import SIGNALS, Interrupted, handled_by
from advbench.runtime.launch import Launch, run_alone
from attacks_pool.errors import InputError

SHARED = ("run", "eval")
"""The commands that all processes work on; process 0 alone runs any other."""

SIGNALLED = 128
"""From this exit code on, a signal ended the command, perhaps because a process did not start."""

TEAM = "advbench.runtime.team"

Outcome = Callable[[list[str]], tuple[str | None, int]]


def in_processes(arguments: list[str], outcome: Outcome, launch: Launch) -> int:
    """Run the command line in this process and the others; return the exit code, or end with it.

    Process 0 runs the command and writes everything. The others do what it orders and end with its code.

    Args:
        arguments: the command line.
        outcome: runs it; returns the line for stderr, if there is one, and the exit code.
        launch: this process.
    """
    shared = arguments[:1] and arguments[0] in SHARED and not {"-h", "--help"} & set(arguments)
    if launch.rank:
        return _help(arguments[0], launch) if shared else 0
    if shared:
        _lead(arguments, outcome)
    run_alone()
    line, code = outcome(arguments)
    if line is not None:
        warn(line)
    return code


def _lead(arguments: list[str], outcome: Outcome) -> NoReturn:
    """Run the command, and end all processes with its exit code."""
    line, code = None, 1
    try:
        with handled_by(_stop_starting):
            line, code = outcome(arguments)
    finally:
        if code >= SIGNALLED and TEAM not in sys.modules:
            # A signal has come before torch was imported; it cannot be imported again.
            _end_now(line, code)
        # A mistake in the options is found without torch.
        from advbench.runtime.team import Leader, join, joined, leave

        if (others := joined()) is not None:
            others.speak()
        if line is not None:
            warn(line)
        if code < SIGNALLED:
            with contextlib.suppress(InputError):
                others = join()
        # torchrun sends a signal to all processes as soon as one has ended.
        _ignore_signals()
        if isinstance(others, Leader):
            others.end(code)
    leave(code)


def _help(command: str, launch: Launch) -> int:
    """Do what process 0 orders, in silence; return the exit code that it gives."""
    errors = os.dup(2)
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    from advbench.runtime.reasons import reason

    try:
        from advbench.benchmark import crew
        from advbench.external import processes
        from advbench.runtime.team import Member, join, leave

        take_part: Callable[[Member], object]
        take_part = crew.take_part if command == "run" else processes.take_part
        member = join(errors)
        assert isinstance(member, Member)
    except Exception as error:
        os.write(errors, f"error: {launch.name}: {reason(error)}\n".encode())
        return 1
    _ignore_signals()
    with member.at_work():
        while True:
            try:
                take_part(member)
            except SystemExit as stop:
                leave(int(stop.code or 0))
            except Exception:
                # Process 0 reports it and ends this process.
                continue


def _end_now(line: str | None, code: int) -> NoReturn:
    if line is not None:
        warn(line)
    sys.stderr.flush()
    os._exit(code)


def _stop_starting(number: int, _frame: FrameType | None) -> None:
    """Handle a signal that comes before a run handles it."""
    stop = Interrupted(128 + number)
    # torchrun sends one if a process has failed to start.
    stop.how = "not all processes had joined the run"
    raise stop


def _ignore_signals() -> None:
    def nothing(_number: int, _frame: FrameType | None) -> None:
        """A handler rather than SIG_IGN, which processes started from here would inherit."""

    for number in SIGNALS:
        signal.signal(number, nothing)
