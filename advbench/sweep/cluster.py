"""Runs the cells of a sweep as tasks of a Ray cluster, whose nodes need not share a file system."""

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advbench.runtime.interrupts import handled_by
from advbench.runtime.ray_client import connect, load_ray
from advbench.runtime.reasons import reason
from advbench.sweep.on_node import Message, messages
from advbench.sweep.one_run import Job
from advbench.sweep.outcome import Kind, Sweeping, SweepOutcome, Tell, Told
from advbench.sweep.plan import SweepCell
from advbench.sweep.transfer import adopt, arrival, clear_arrivals, receive
from attacks_pool import InputError
from leaderboards import RecordError

PATIENCE = 0.5
"""Seconds to wait for messages before checking whether to stop."""
AHEAD = 3
"""How many pieces may wait to be fetched from a task."""
ELSEWHERE = re.compile(r" \(its traceback is in .*|; (finished work|the last good state) is kept.*")
"""The part of a failed run's message about files in a temporary directory on a node."""
WAITING = 16
"""How many tasks are submitted beyond the running ones, so that a growing cluster has work."""


@dataclass(frozen=True)
class Resources:
    """What a cell takes.

    Attributes:
        cpus: CPUs of each process.
        gpus: GPUs of the cell, of which several processes take one each.
        memory: bytes of each process; None if none are requested.
        processes: the processes that train the cell.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None
    processes: int = 1

    @property
    def each(self) -> dict[str, float]:
        """What each process takes, in Ray's terms."""
        memory = {} if self.memory is None else {"memory": float(self.memory)}
        return {"CPU": self.cpus, "GPU": self.gpus / self.processes, **memory}


def run_on_ray(
    cells: Sequence[SweepCell],
    runs_dir: Path,
    *,
    address: str,
    resources: Resources,
    attack_timeout: float | None = None,
    tell: Tell = lambda _: None,
) -> SweepOutcome:
    """Run cells as tasks on a cluster; every finished run's files come back and are stored here.

    Each node needs this version of advbench, and the data at the path in the grid. SIGINT and SIGTERM end the
    running tasks; runs that have arrived are kept.

    Args:
        cells: the cells to run, in order.
        runs_dir: the store, on this machine.
        address: ``auto``, ``local`` (a cluster on this machine only, for this sweep) or ``host:port``.
        resources: the resources of each cell.
        attack_timeout: seconds after which an attack counts as hanging.
        tell: called with every event.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, or this machine has too few CPUs
            or GPUs.
    """
    ray = load_ray()
    connect(ray, address)
    options: dict[str, Any] = {"num_cpus": 0}
    if resources.processes == 1:
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        if resources.memory is not None:
            options["memory"] = resources.memory
    options |= {"max_retries": 0, "num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
    try:
        if address == "local":
            check_room(ray.cluster_resources(), resources)
        more = {"ray": ray, "task": ray.remote(**options)(_task), "need": resources}
        driver = _Driver(deque(cells), runs_dir, attack_timeout, tell, **more)
        with handled_by(driver.receive):
            clear_arrivals(runs_dir)
            driver.run()
        return driver.outcome
    finally:
        ray.shutdown()


def check_room(there: Mapping[str, float], need: Resources) -> None:
    """Refuse cells that take more than a cluster has, which no node will join.

    Raises:
        InputError: it has too few CPUs or GPUs.
    """
    for kind, option in (("CPU", "--cpus"), ("GPU", "--gpus-per-run")):
        found, wanted = there.get(kind, 0.0), need.each[kind] * need.processes
        if wanted > found:
            several = f" in {need.processes} processes" if need.processes > 1 else ""
            less = " or --processes-per-run" if several and kind == "CPU" else ""
            raise InputError(
                f"each run takes {wanted:g} {kind}s{several}, and this machine has {found:g}: "
                f"lower {option}{less}"
            )


def _task(job: Job, need: Resources) -> Iterator[Message]:
    """Run a cell on a node, or in several processes on one or more; yield its files, see `messages`."""
    if need.processes > 1:
        from advbench.sweep.several import run_together

        yield from run_together(job, need.processes, need.each)
        return
    if not need.gpus:
        # Hide GPUs that Ray leaves visible: a cell without GPUs was planned for the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    yield from messages(job)


@dataclass
class _Receiving:
    """A run that a task sends, once it has ``begun``; its ``folder`` is created with the first file."""

    cell: SweepCell
    begun: bool = False
    folder: Path | None = None
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@dataclass(kw_only=True)
class _Driver(Sweeping):
    """Submits tasks and receives their messages."""

    ray: Any
    task: Any
    need: Resources
    under_way: dict[Any, _Receiving] = field(default_factory=dict)

    def run(self) -> None:
        """Run until nothing is left to do, or a signal stops it."""
        # The processes of a cell wait for their resources while its task takes none.
        waiting = WAITING if self.need.processes == 1 else 1
        try:
            while (self.queue or self.under_way) and not self.stops:
                begun = sum(one.begun for one in self.under_way.values())
                while self.queue and len(self.under_way) < begun + waiting:
                    cell = self.queue.popleft()
                    stream = self.task.remote(self.job(cell), self.need)
                    self.under_way[stream] = _Receiving(cell)
                ready, _ = self.ray.wait(
                    list(self.under_way), num_returns=1, timeout=PATIENCE, fetch_local=False
                )
                for stream in ready:
                    self._hear(stream)
        finally:
            for stream, receiving in list(self.under_way.items()):
                with contextlib.suppress(Exception):  # errors of a cancelled task do not matter
                    self.ray.cancel(stream, force=True)
                receiving.open.close()

    def _hear(self, stream: Any) -> None:
        receiving = self.under_way[stream]
        try:
            message = self.ray.get(next(stream))
        except StopIteration:
            self._end(stream, "failed", "its task ended and sent nothing")
            return
        except self.ray.exceptions.RayError as error:
            # The cause says what failed, without Ray's long advice.
            fault = reason(getattr(error, "cause", None) or error)
            self._end(stream, "failed", f"its task was lost: {fault}")
            return
        try:
            if message[0] == "begin":
                receiving.begun = True
                self.tell(Told("begin", receiving.cell, 0, text=message[1]))
            elif message[0] == "piece":
                if receiving.folder is None:
                    receiving.folder = receiving.open.enter_context(arrival(self.runs_dir))
                receive(receiving.folder, message[1], message[2])
            elif message[0] == "whole":
                if receiving.folder is None:
                    raise RecordError("the run sent no files")
                self._end(stream, "done", str(adopt(receiving.folder, self.runs_dir)))
            else:
                self._end(stream, "failed", ELSEWHERE.sub("", message[1]))
        except (RecordError, OSError) as error:
            self._end(stream, "failed", reason(error))

    def _end(self, stream: Any, kind: Kind, text: str) -> None:
        receiving = self.under_way.pop(stream)
        receiving.open.close()
        self.note(kind, receiving.cell, text)
