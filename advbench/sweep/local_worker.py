"""A worker process: imports torch once, then takes one cell after another from its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from advbench.runtime.events import Event
from advbench.runtime.reasons import reason
from advbench.sweep.one_run import Job, perform

QUIET = 0.25
"""Seconds between two reports of single batches."""
GRACE = 600.0
"""Seconds that a run has to save when the parent is gone."""


def work(connection: Connection[Any, Any], log: Path, runs_dir: Path, gpu: int | None) -> None:
    """The life of a worker; it ends when its parent says so, closes the pipe or is gone.

    Sends ``("ready",)``, then for each job any number of ``("event", event)`` and one of ``("done", path)``,
    ``("failed", reason)`` and ``("cut",)``.
    """
    _step_aside(log)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    import advbench.benchmark.run  # noqa: F401 - once, before the first cell

    connection.send(("ready",))
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        if job is None:
            return
        answer = _one(job, runs_dir, connection)
        connection.send(answer)
        if answer[0] == "cut":
            return


def _one(job: Job, runs_dir: Path, connection: Connection[Any, Any]) -> tuple[Any, ...]:
    from advbench.runtime.interrupts import Interrupted, interrupts

    last = 0.0

    def listen(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if event.kind != "batch" or now - last >= QUIET:
            last = now
            with contextlib.suppress(OSError):  # a parent that is gone must not keep the run from saving
                connection.send(("event", event))

    try:
        with interrupts() as stopper:
            return "done", perform(job, runs_dir, [listen, stopper])
    except (Interrupted, KeyboardInterrupt):
        return ("cut",)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return "failed", reason(error)


def _step_aside(log: Path) -> None:
    """Leave the terminal to the parent, and see to it that this process ends with it."""
    if hasattr(os, "setsid"):
        # Ctrl-C reaches the parent alone, which then stops its workers in order.
        os.setsid()
    silent, target = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(silent, 0)
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # A run under way finishes its batch and saves; between two there is nothing to lose.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)
