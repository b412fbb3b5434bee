"""SIGINT and SIGTERM: the first stops a run where it can be resumed later, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from advbench.runtime.events import Event

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the process to stop.

    Attributes:
        code: the exit code that shells give: 130 after SIGINT, 143 after SIGTERM.
        how: the words that say how to resume the running run, if there was one.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by {signal.Signals(code - 128).name}")
        self.code = code
        self.how = ""


class Interrupts:
    """A listener that raises `Interrupted` where a run can be stopped.

    During training this is after a batch, at other times it is at once.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._patient = False

    def __call__(self, event: Event) -> None:
        """Handle an event: stop the run here if a signal has arrived."""
        self._patient = event.kind in ("batch", "epoch") or (event.kind == "phase" and event.text == "train")
        # A run at its end is complete, so there is nothing to stop.
        if self.code is not None and event.kind != "end":
            raise Interrupted(self.code)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.code is not None:
            # Nothing is lost: files are written atomically, and the system unlocks the run.
            os._exit(128 + number)
        self.code = 128 + number
        if not self._patient:
            raise Interrupted(self.code)


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Handle signals within the block, if this is the main thread; restore the handlers afterwards."""
    found = Interrupts()
    with handled_by(found.receive):
        yield found


@contextmanager
def handled_by(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call ``receive`` for signals within the block, if this is the main thread; restore the handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
