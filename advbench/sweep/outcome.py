"""The outcome of a sweep, and its events."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from advbench.runtime.events import Event
from advbench.sweep.one_run import Job
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


@dataclass
class Sweeping:
    """A sweep in progress: the cells that wait, and the outcome of those that ended."""

    queue: deque[SweepCell]
    runs_dir: Path
    attack_timeout: float | None
    tell: Tell
    stop: Stop
    outcome: SweepOutcome = field(default_factory=SweepOutcome, init=False)

    def job(self, cell: SweepCell) -> Job:
        """The cell in the form that is sent to a worker."""
        return Job(cell.number, cell.options, cell.sample_seed, cell.identity, self.attack_timeout)

    def note(self, kind: Kind, cell: SweepCell, what: object, worker: int = 0) -> None:
        """Record and report the end of a cell; ``what`` is the run's directory, or why it failed."""
        if kind == "done":
            self.outcome.done[cell.number] = Path(str(what))
        elif kind == "failed":
            self.outcome.failed[cell.number] = str(what)
        self.tell(Told(kind, cell, worker, text=str(what)))
