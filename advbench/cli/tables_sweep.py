"""Output of a sweep: its plan, its progress, and how it ended."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from advbench.cli.echo import echo, warn
from advbench.cli.results import write_json
from advbench.runs.tables import labels
from advbench.runtime.console import errors, output
from advbench.runtime.events import Event
from advbench.runtime.progress import describe, duration
from advbench.sweep.outcome import SweepOutcome, Tell, Told
from advbench.sweep.plan import SweepCell, SweepPlan
from leaderboards import find_complete, read_record
from leaderboards.printable import in_line

SHOWN = ("batch", "epoch", "cell", "end")
"""Events that show the progress of a run."""


def print_plan(plan: SweepPlan, runs_dir: Path, *, workers: int | None, ray: str | None) -> None:
    """Print the cells by data set, model, sequence and defense, and the time that the rest will take.

    Args:
        plan: the plan of the sweep.
        runs_dir: the directory of runs.
        workers: number of processes on this machine; None on a cluster.
        ray: the address of the cluster, or None.
    """
    console = output()
    title = in_line(f"Sweep of {_count(len(plan.cells), 'run')} in {runs_dir}")
    table = Table(title=title, title_justify="left")
    for column in ("data set", "model", "sequence", "defense"):
        table.add_column(column)
    for column in ("runs", "finished", "unfinished", "to do", "estimate"):
        table.add_column(column, justify="right")
    for cells in _groups(plan.cells):
        table.add_row(*_row(cells, plan.cells))
    console.print(table)
    elsewhere = plan.count("running")
    counts = (
        f"{plan.count('complete')} finished, {plan.count('unfinished')} unfinished, {plan.count('new')} new"
    )
    more = f", {elsewhere} running in another process" if elsewhere else ""
    console.print(f"{_count(len(plan.cells), 'run')}: {counts}{more}")
    if not plan.to_do:
        console.print("nothing is left to do")
        return
    one = sum(cell.seconds for cell in plan.to_do)
    if workers is None:
        each = f", each run in {plan.processes} processes" if plan.processes > 1 else ""
        time_left = f"{duration(one)} of one worker's time, on the cluster at {ray}{each}"
    else:
        time_left = f"{duration(plan.seconds(workers))} with {_count(workers, 'worker')}"
    console.print(f"estimate   {time_left}", soft_wrap=True)
    for speed in plan.speeds:
        rate = (
            f"{1 / (speed.forward + speed.backward):,.0f}" if speed.forward + speed.backward else "very many"
        )
        console.print(f"           {rate} images/s forward and backward, {speed.source}", soft_wrap=True)


def write_plan(plan: SweepPlan) -> None:
    """Print the cells as JSON: options, resolved config, identity, state, passes and estimate."""
    cells = [
        {
            "cell": cell.number,
            "options": cell.options,
            "config": cell.config.model_dump(mode="json"),
            "identity": cell.identity,
            "state": cell.state,
            "processes": plan.processes,
            "passes": {"forwards": cell.work.forwards, "backwards": cell.work.backwards},
            "seconds": round(cell.seconds, 1),
        }
        for cell in plan.cells
    ]
    echo(json.dumps(cells, indent=1))


def write_records(plan: SweepPlan, outcome: SweepOutcome, runs_dir: Path) -> None:
    """Print the records of the complete cells as a JSON list, in the grid's order."""
    found = []
    for cell in plan.cells:
        if cell.number in outcome.done:
            found.append(outcome.done[cell.number])
        elif cell.state == "complete":
            found += find_complete(runs_dir, cell.identity)[:1]
    write_json([read_record(path) for path in found], several=True)


def print_failures(plan: SweepPlan, outcome: SweepOutcome) -> None:
    """Print why cells failed, on stderr."""
    cells = {cell.number: cell for cell in plan.cells}
    for number, why in sorted(outcome.failed.items()):
        warn(f"failed: cell {number}, {cells[number].label}: {why}")


def print_outcome(plan: SweepPlan, outcome: SweepOutcome, runs_dir: Path) -> None:
    """Print how many cells are complete."""
    complete = plan.count("complete") + len(outcome.done)
    console = output()
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    left = len(plan.cells) - complete - len(outcome.failed)
    console.print(f"{complete} of {_count(len(plan.cells), 'run')} complete{failed}", end="")
    console.print(f", {left} left" if left else "")
    if complete < len(plan.cells) and outcome.signal is None:
        console.print("go on      repeat the command to do the rest")
    if complete:
        command = f"advbench leaderboard --runs-dir {shlex.quote(str(runs_dir))}"
        console.print(in_line(f"all runs   {command}"), soft_wrap=True)


@contextmanager
def reporter(plan: SweepPlan, workers: int) -> Iterator[Tell]:
    """A listener that reports to stderr while the context is open; ``workers`` is 0 on a cluster."""
    board = _Board(plan, workers)
    console = errors()
    if not console.is_terminal:

        def tell(told: Told) -> None:
            if (line := board.hear(told)) is not None:
                warn(line)

        yield tell
        return
    with Live(get_renderable=board.lines, console=console, refresh_per_second=4, transient=True):

        def show(told: Told) -> None:
            line = board.hear(told)
            if line is not None and told.kind != "begin":
                console.print(in_line(line))

        yield show


class _Board:
    """The state of each worker, and how much is left."""

    def __init__(self, plan: SweepPlan, workers: int) -> None:
        self.began = time.monotonic()
        self.workers = workers
        self.total = len(plan.cells)
        self.finished = plan.count("complete")
        self.waiting = {cell.number: cell for cell in plan.to_do}
        self.active: dict[int, tuple[SweepCell, float, int, Event | None]] = {}
        self.estimated = self.taken = 0.0

    def hear(self, told: Told) -> str | None:
        """Record an event; return a line to print, or None."""
        cell, now = told.cell, time.monotonic()
        if told.kind in ("begin", "event"):
            began = self.active[cell.number][1] if cell.number in self.active else now
            event = told.event
            if event is not None and event.kind not in SHOWN:
                event = self.active[cell.number][3] if cell.number in self.active else None
            self.active[cell.number] = (cell, began, told.worker, event)
            where = f" on {told.text}" if told.text else ""
            return None if told.kind == "event" else self._line(f"begins{where}", told)
        self.waiting.pop(cell.number, None)
        found = self.active.pop(cell.number, None)
        if told.kind == "done":
            self.finished += 1
            if found is not None:
                self.taken += now - found[1]
                self.estimated += cell.seconds
            return self._line("done", told)
        return self._line("cut off" if told.kind == "cut" else f"failed: {told.text}", told)

    def lines(self) -> Group:
        """One line per worker, and a total."""
        found = []
        for cell, began, worker, event in sorted(
            self.active.values(), key=lambda one: (one[2], one[0].number)
        ):
            where = describe(event) if event is not None else f"[{duration(time.monotonic() - began):>6}]"
            who = f"worker {worker}  " if worker else ""
            found.append(Text(f"{who}{cell.label}  {where}", "cyan", no_wrap=True, overflow="ellipsis"))
        found.append(Text(f"[{duration(time.monotonic() - self.began):>6}] {self._total()}", "bold"))
        return Group(*found)

    def _line(self, what: str, told: Told) -> str:
        head = f"[{duration(time.monotonic() - self.began):>6}] {self.finished}/{self.total}"
        left = f"  ({duration(self.left)} left)" if told.kind == "done" and self.waiting else ""
        return f"{head}  {told.cell.label}  {what}{left}"

    def _total(self) -> str:
        left = f"  (about {duration(self.left)} left)" if self.waiting else ""
        return f"{self.finished} of {self.total} complete, {len(self.waiting)} to do{left}"

    @property
    def left(self) -> float:
        """Estimated seconds left, scaled by how long the finished cells took."""
        now, scale = time.monotonic(), self.taken / self.estimated if self.estimated else 1.0
        spent = {number: now - began for number, (_, began, _, _) in self.active.items()}
        each = [
            max(cell.seconds * scale - spent.get(number, 0.0), 0.0) for number, cell in self.waiting.items()
        ]
        return sum(each) / max(self.workers or len(self.active), 1)


def _groups(cells: Sequence[SweepCell]) -> list[list[SweepCell]]:
    """Group the cells that differ only in the seed."""
    found: dict[str, list[SweepCell]] = {}
    for cell in cells:
        found.setdefault(cell.group_key, []).append(cell)
    return list(found.values())


def _row(cells: list[SweepCell], every: Sequence[SweepCell]) -> list[str]:
    config, options = cells[0].config, cells[0].options
    alike = [other for other in every if other.group == cells[0].group]
    keys = [
        key for key in options if key != "seed" and any(one.options.get(key) != options[key] for one in alike)
    ]
    own = " ".join(f"{key}={_plain(options[key])}" for key in keys)
    regime = "" if config.regime == "continual" else f" ({config.regime})"
    counts = [sum(cell.state == state for cell in cells) for state in ("complete", "unfinished")]
    to_do = sum(cell.state != "complete" for cell in cells)
    return [
        config.dataset,
        config.model,
        ",".join(labels(config.sequence)),
        " ".join([f"{config.defense}{regime}", own]).strip(),
        *(str(number) for number in (len(cells), *counts, to_do)),
        duration(sum(cell.seconds for cell in cells)) if to_do else "-",
    ]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={one}" for key, one in value.items())
    return str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
