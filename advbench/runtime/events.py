"""Progress events of a run, and listeners for them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attacks_pool.errors import InputError
from leaderboards import Cell
from leaderboards.statistics.naming import attack_name

Kind = Literal["start", "resume", "note", "phase", "batch", "epoch", "cell", "stage", "end"]


@dataclass(frozen=True)
class Event:
    """One event of a run: its progress, measurements, elapsed seconds and estimated remaining seconds.

    ``resume`` replaces ``start`` in a resumed run; ``step`` counts the epochs of the whole run. Stage 0 is
    clean pretraining; ``attack`` is the text of the attack in training or measurement. A ``phase`` begins
    with the ``text`` ``train`` or ``measure``; a ``note`` is a message for the user. In training, ``rate`` is
    the images per second, and ``rest`` the seconds that the rest of the stage takes at that speed; ``left``
    is about the whole run.
    """

    kind: Kind
    stage: int = 0
    stages: int = 0
    epoch: int = 0
    epochs: int = 0
    batch: int = 0
    batches: int = 0
    step: int = 0
    attack: str = ""
    losses: dict[str, float] = field(default_factory=dict)
    cell: Cell | None = None
    elapsed: float = 0.0
    left: float | None = None
    rate: float | None = None
    rest: float | None = None
    text: str = ""


Listener = Callable[[Event], None]


class Clock:
    """Elapsed and remaining seconds: mean times of epochs and rows so far, times the remaining numbers."""

    def __init__(self, epochs: int, rows: int) -> None:
        self._began = time.perf_counter()
        self._totals = {"epoch": epochs, "row": rows}
        self._spent = {"epoch": 0.0, "row": 0.0}
        self._done = {"epoch": 0, "row": 0}
        self._last = self._began

    def tick(self, what: Literal["epoch", "row"]) -> None:
        """Count one finished epoch or row."""
        now = time.perf_counter()
        self._spent[what] += now - self._last
        self._done[what] += 1
        self._last = now

    def skip(self, what: Literal["epoch", "row"], count: int) -> None:
        """Count epochs or rows that were finished before the start."""
        self._totals[what] -= count

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> float | None:
        """The estimated remaining seconds; None until one epoch and one row are done."""
        if not (self._done["epoch"] and self._done["row"]):
            return None
        return sum(
            self._spent[what] / self._done[what] * max(total - self._done[what], 0)
            for what, total in self._totals.items()
        )


class JsonLog:
    """Appends every event except phases and single batches to ``log.jsonl``, one flushed line per event."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write one line."""
        if event.kind in ("batch", "phase"):
            return
        self._file.write(json.dumps({"time": round(time.time(), 3), **_brief(event)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardLog:
    """Scalars for TensorBoard: losses by epoch, accuracies by stage.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, path: Path) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path))

    def __call__(self, event: Event) -> None:
        """Add the measurements of the event."""
        if event.kind == "epoch":
            for name, value in event.losses.items():
                self._writer.add_scalar(f"train/{name}", value, event.step)
        elif event.kind == "cell" and event.cell is not None:
            name = f"robust/{attack_name(event.cell.attack)}"
            self._writer.add_scalar(name, event.cell.accuracy, event.stage)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def check_tensorboard() -> None:
    """Raise InputError if the package is missing, before a run starts."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - tests only whether it loads
    except ImportError:
        raise InputError("tensorboard is not installed: pip install 'advbench[tensorboard]'") from None


def tell(listeners: Sequence[Listener], event: Event) -> None:
    """Call every listener with ``event``."""
    for listener in listeners:
        listener(event)


def _brief(event: Event) -> dict[str, Any]:
    """The event's fields that are set."""
    values = {name: value for name, value in vars(event).items() if value not in (None, "", {}, 0)}
    values["stage"] = event.stage
    if event.cell is not None:
        values["cell"] = event.cell.model_dump(mode="json")
    for name in ("elapsed", "left", "rate", "rest"):
        if name in values:
            values[name] = round(values[name], 3)
    return values
