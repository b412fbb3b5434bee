"""What became of the cells of a sweep, and what it says while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from advbench.events import Event
from advbench.sweep.plan import Cell

Kind = Literal["begin", "event", "done", "failed", "cut"]


@dataclass(frozen=True)
class Told:
    """One moment of a sweep: a cell begins on a worker, gets on, is done, has failed or was cut off."""

    kind: Kind
    cell: Cell
    worker: int
    event: Event | None = None
    text: str = ""


Tell = Callable[[Told], None]


@dataclass
class Outcome:
    """The cells of a sweep by what became of them; ``signal`` is what stopped it, if something did."""

    done: dict[int, Path] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    signal: int | None = None
