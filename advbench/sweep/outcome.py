"""The outcome of a sweep, and its events."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from advbench.runtime.events import Event
from advbench.sweep.plan import SweepCell


class Stop:
    """Counts stop signals within the block, if it runs in the main thread.

    Attributes:
        count: the number of signals.
        signal: the first signal; None without any.
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


Kind = Literal["begin", "event", "done", "failed", "cut"]


@dataclass(frozen=True)
class Told:
    """One event of a sweep: a cell begins on a worker, progresses, is done, has failed or was cut off."""

    kind: Kind
    cell: SweepCell
    worker: int
    event: Event | None = None
    text: str = ""


Tell = Callable[[Told], None]


@dataclass
class SweepOutcome:
    """The cells of a sweep by outcome; ``signal`` is the signal that stopped the sweep, if any."""

    done: dict[int, Path] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    signal: int | None = None
