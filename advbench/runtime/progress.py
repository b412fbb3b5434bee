"""What a run shows while it goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from advbench.runtime.console import errors
from advbench.runtime.events import Event, Listener
from leaderboards.printable import in_line
from leaderboards.statistics.naming import attack_name

PLAIN_INTERVAL = 5.0


@contextmanager
def watched(listeners: Sequence[Listener], progress: bool | None) -> Iterator[list[Listener]]:
    """The listeners of a run, with a `reporter` while the context is open if its caller watches it.

    Args:
        listeners: those that the caller gave.
        progress: True shows progress, False does not; None shows it in notebooks alone.
    """
    # Here, since the command line reads this module before it may load torch.
    from defenses.training.shown import in_notebook

    if progress or (progress is None and in_notebook()):
        with reporter() as shown:
            yield [*listeners, shown]
    else:
        yield list(listeners)


@contextmanager
def reporter() -> Iterator[Listener]:
    """A listener that reports to stderr while the context is open."""
    console = errors(force_jupyter=False)
    if not console.is_terminal:
        yield _Plain()
        return
    last: list[Event] = []

    def line() -> Text:
        return Text(in_line(describe(last[0])) if last else "reading data", style="cyan")

    with Live(get_renderable=line, console=console, refresh_per_second=8, transient=True):

        def listen(event: Event) -> None:
            last[:] = [event]
            if event.kind in ("cell", "end", "note"):
                console.print(in_line(describe(event)))

        yield listen


class _Plain:
    """Each measured cell, and where training stands every few seconds of the clock ``now``."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last = now, -math.inf
        self._console = errors(force_jupyter=False)

    def __call__(self, event: Event) -> None:
        now = self._now()
        if event.kind in ("epoch", "batch"):
            if now - self._last < PLAIN_INTERVAL and not (
                event.kind == "epoch" and event.epoch == event.epochs
            ):
                return
        elif event.kind not in ("start", "resume", "note", "cell", "end"):
            return
        self._last = now
        self._console.print(in_line(describe(event)), soft_wrap=True)


def describe(event: Event) -> str:
    """One line: time gone, stage, epoch and batch or attack, what was measured, speed, time left."""
    left = f"  ({duration(event.left)} left)" if event.left is not None and event.kind != "end" else ""
    head = f"[{duration(event.elapsed):>6}] "
    where = f"stage {event.stage}/{event.stages}" if event.stage else "pretraining"
    if event.kind in ("start", "resume"):
        return f"{head}{'going on with ' if event.kind == 'resume' else ''}run {event.text}"
    if event.kind == "note":
        return f"{head}{event.text}"
    if event.kind == "end":
        return f"{head}finished"
    if event.kind == "cell" and event.cell is not None:
        name = attack_name(event.cell.attack)
        row = f"row {event.stage}/{event.stages}  " if event.stages else ""
        return f"{head}{row}{name:<14} {100 * event.cell.accuracy:5.1f} %{left}"
    if event.kind in ("epoch", "batch"):
        return f"{head}{where}  {event.attack}  {_training(event)}"
    return f"{head}{where}{left}"


def _training(event: Event) -> str:
    """Epoch, batch, loss, images per second and time left."""
    parts = [f"epoch {event.epoch}/{event.epochs}"]
    if event.kind == "batch":
        parts.append(f"batch {event.batch}/{event.batches}" if event.batches else f"batch {event.batch}")
    if "loss" in event.losses:
        parts.append(f"loss {event.losses['loss']:.3f}")
    if event.rate is not None:
        parts.append(f"{event.rate:,.0f} images/s" if event.rate >= 10 else f"{event.rate:.2g} images/s")
    rest = [] if event.rest is None else [f"{duration(event.rest)} left in this stage"]
    whole = [] if event.left is None else [f"{duration(event.left)} {'in all' if rest else 'left'}"]
    if rest or whole:
        parts.append(f"({', '.join([*rest, *whole])})")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """``42s``, ``3m05s``, ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
