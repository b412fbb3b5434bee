"""SIGINT and SIGTERM while a sweep is under way: noted, and acted on between two messages."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Stop:
    """Counts the signals that ask to stop while the context is open; elsewhere than in the main thread none.

    Attributes:
        count: how many there were.
        signal: the first one; None if there was none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.signal is None:
            self.signal = number
