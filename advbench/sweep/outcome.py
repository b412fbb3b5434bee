"""The outcome of a sweep, and its events."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from advbench.runtime.events import Event
from advbench.sweep.one_run import Job
from advbench.sweep.plan import SweepCell

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
    """A sweep in progress: the cells that wait, the outcome of others, and how many signals stop it."""

    queue: deque[SweepCell]
    runs_dir: Path
    attack_timeout: float | None
    tell: Tell
    stops: int = field(default=0, init=False)
    outcome: SweepOutcome = field(default_factory=SweepOutcome, init=False)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The handler of signals, which counts them and keeps the first."""
        self.stops += 1
        if self.outcome.signal is None:
            self.outcome.signal = number

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
