"""Progress of a training that its user watches: lines on stderr, on request and in notebooks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from defenses.training.stage import Progress

INTERVAL = 5.0
"""Seconds between two lines within a stage; the end of the stage always has one."""


def in_notebook() -> bool:
    """Whether this is a notebook's kernel; a process that never imported IPython is none."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = found() if callable(found) else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def listener_of(progress: Callable[[Progress], None] | bool | None) -> Callable[[Progress], None] | None:
    """What ``fit`` calls after each batch: the caller's function, the lines of this module, or nothing.

    Args:
        progress: a function; True for lines, False for none; None for lines in a notebook alone.
    """
    if callable(progress):
        return progress
    return StageLines() if progress or (progress is None and in_notebook()) else None


class StageLines:
    """Writes where a stage stands to stderr, every few seconds and at the end."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, now: Progress) -> None:
        """Write a line if it is time for one."""
        last = now.epoch == now.epochs and bool(now.batches) and now.batch == now.batches
        if last or time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            of = f"/{now.batches}" if now.batches else ""
            loss = f"  loss {now.losses['loss']:.3f}" if "loss" in now.losses else ""
            line = f"stage {now.stage}  epoch {now.epoch}/{now.epochs}  batch {now.batch}{of}{loss}"
            sys.stderr.write(f"{line}\n")
