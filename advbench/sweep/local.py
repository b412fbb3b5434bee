"""Runs the cells of a sweep in worker processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from advbench.runtime.interrupts import handled_by
from advbench.sweep.local_worker import work
from advbench.sweep.outcome import Kind, Sweeping, SweepOutcome, Tell, Told
from advbench.sweep.plan import SweepCell

PATIENCE = 0.5
"""Seconds to wait for messages before checking whether to stop."""
STARTS = 3
"""How often in a row a worker may die before it is ready."""


def default_workers(cells: Sequence[SweepCell], gpus: int) -> int:
    """One worker per GPU if the cells use GPUs; otherwise the cores divided by the threads of a cell."""
    if gpus:
        return gpus
    threads = max((cell.config.threads or 1 for cell in cells), default=1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // threads, 1)


def run_here(
    cells: Sequence[SweepCell],
    runs_dir: Path,
    *,
    workers: int,
    gpus: int = 0,
    attack_timeout: float | None = None,
    tell: Tell = lambda _: None,
) -> SweepOutcome:
    """Run cells in ``workers`` processes; a cell that fails, or whose process dies, does not affect others.

    After SIGINT or SIGTERM, every worker finishes its batch and saves; a second signal ends them at once.

    Args:
        cells: the cells to run, in order.
        runs_dir: the store.
        workers: the number of processes.
        gpus: the number of GPUs to distribute among the workers; 0 leaves the choice to the cells.
        attack_timeout: seconds after which an attack counts as hanging.
        tell: called with every event.
    """
    with tempfile.TemporaryDirectory(prefix="advbench-sweep-") as logs:
        pool = _Pool(deque(cells), runs_dir, attack_timeout, tell, logs=Path(logs), gpus=gpus)
        with handled_by(pool.receive):
            try:
                pool.run(min(workers, len(cells)))
            finally:
                pool.kill()
        return pool.outcome


class _Worker:
    """The parent's handle of a worker process."""

    def __init__(self, number: int, log: Path, runs_dir: Path, gpu: int | None) -> None:
        self.number, self.log = number, log
        self.ready = False
        self.cell: SweepCell | None = None
        context = multiprocessing.get_context("spawn")
        self.connection: Connection[Any, Any]
        self.connection, theirs = context.Pipe()
        arguments = (theirs, log, runs_dir, gpu)
        self.process: SpawnProcess = context.Process(target=work, args=arguments)
        with _one_thread():
            self.process.start()
        theirs.close()

    def end(self) -> str:
        """Wait for the process; return a line on how it ended."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            name = {int(one): one.name for one in signal.Signals}.get(-code, f"signal {-code}")
            more = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{more}; the same command resumes it"
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        return f"its process ended with code {code}: {last}"


@dataclass(kw_only=True)
class _Pool(Sweeping):
    """The workers, and the queue of cells."""

    logs: Path
    gpus: int
    workers: dict[int, _Worker] = field(default_factory=dict)
    stillborn: int = 0
    started: int = 0

    def run(self, count: int) -> None:
        """Run until nothing is left to do, or a signal stops it. Idle workers end at once."""
        for number in range(1, count + 1):
            self._start(number)
        stopping = 0
        while self.workers and (self.queue or any(one.cell for one in self.workers.values())):
            if self.stops > stopping:
                stopping = self.stops
                for worker in self.workers.values():
                    # The first signal lets it save.
                    (worker.process.kill if stopping > 1 else worker.process.terminate)()
            waiting = {worker.connection: worker for worker in self.workers.values()}
            for connection in wait(list(waiting), PATIENCE):
                self._hear(waiting[connection])  # type: ignore[index]

    def kill(self) -> None:
        """Kill the remaining processes."""
        for worker in self.workers.values():
            worker.process.kill()
            worker.process.join()
        self.workers.clear()

    def _start(self, number: int) -> None:
        self.started += 1
        gpu = (number - 1) % self.gpus if self.gpus else None
        log = self.logs / f"{self.started}.log"
        self.workers[number] = _Worker(number, log, self.runs_dir, gpu)

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        kind, cell = message[0], worker.cell
        if kind == "ready":
            worker.ready, self.stillborn = True, 0
        elif cell is None:
            return
        elif kind == "event":
            self.tell(Told("event", cell, worker.number, event=message[1]))
            return
        else:
            worker.cell = None
            self._ended(kind, cell, worker.number, message[1] if len(message) > 1 else "")
            if kind == "cut":
                return  # it ends by itself
        self._feed(worker)

    def _ended(self, kind: Kind, cell: SweepCell, worker: int, what: object) -> None:
        if kind == "cut" and not self.stops:
            kind, what = "failed", "its process was told to stop; the same command resumes it"
        self.note(kind, cell, what, worker)

    def _feed(self, worker: _Worker) -> None:
        """Give a free worker its next cell, or end it."""
        cell = self.queue.popleft() if self.queue and not self.stops else None
        try:
            worker.connection.send(None if cell is None else self.job(cell))
        except OSError:
            # The worker has just died; the next round notices that by its pipe.
            if cell is not None:
                self.queue.appendleft(cell)
            return
        if cell is not None:
            worker.cell = cell
            self.tell(Told("begin", cell, worker.number))

    def _bury(self, worker: _Worker) -> None:
        """Handle the end of a worker: its cell has failed, and a new worker replaces it."""
        how = worker.end()
        del self.workers[worker.number]
        if worker.cell is not None:
            self.note("cut" if self.stops else "failed", worker.cell, how, worker.number)
        elif not worker.ready and not self.stops:
            self.stillborn += 1
            if self.stillborn >= STARTS:
                while self.queue:
                    self.note("failed", self.queue.popleft(), f"no worker starts: {how}", worker.number)
        if self.queue and not self.stops:
            self._start(worker.number)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started within the block use thread pools of one thread, until a run requests more."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
