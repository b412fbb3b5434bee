"""The worker process: imports torch once, then runs one cell after another for its parent."""

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
"""The minimum seconds between two reports of single batches."""
GRACE = 600.0
"""Seconds that a run has for saving after the parent has ended."""


def work(connection: Connection[Any, Any], log: Path, runs_dir: Path, gpu: int | None) -> None:
    """The main function of a worker; it ends if its parent tells it to, closes the pipe or ends.

    It sends ``("ready",)``, then for each job any number of ``("event", event)`` and one of
    ``("done", path)``, ``("failed", reason)`` and ``("cut",)``.
    """
    _step_aside(log)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    import advbench.benchmark.run  # noqa: F401 - imported once, before the first cell

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
            with contextlib.suppress(OSError):  # the run must save even if the parent has ended
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
    """Detach from the terminal, and make this process end with its parent."""
    if hasattr(os, "setsid"):
        # Ctrl-C then reaches only the parent, which stops its workers in order.
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
        # A running run finishes its batch and saves; between runs there is nothing to lose.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)
