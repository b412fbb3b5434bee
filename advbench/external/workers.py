"""Distributes an evaluation: other processes, here or on a Ray cluster, measure its shards."""

import multiprocessing
import os
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advbench.external.request import EvalRequest
from attacks_pool.errors import InputError
from leaderboards import write_bytes

MOST_WORKERS = 1024


@dataclass(frozen=True)
class Share:
    """Part ``number`` of ``of`` parts of an evaluation, as plain values that can be sent anywhere.

    ``request`` and ``identity`` are those of the evaluation; pieces are stored in ``directory``.
    """

    request: EvalRequest
    identity: str
    directory: Path
    number: int
    of: int


def share(
    request: EvalRequest, identity: str, directory: Path, *, workers: int | None, ray: str | None
) -> list[str]:
    """Make ``workers`` processes, or tasks on the cluster ``ray``, write pieces to ``directory``.

    A piece that a worker could not measure is just missing: the caller then measures it, and gets its error.
    On a cluster, every node needs this version of advbench, the data and the model's files at the same paths,
    and the model's factory must be importable there.

    Returns:
        A line for each incomplete share.

    Raises:
        InputError: there is no cluster at the address.
    """
    if ray is not None:
        return _share_on_ray(request, identity, directory, workers, ray)
    context = multiprocessing.get_context("spawn")
    count = workers or 1
    parts = [Share(request, identity, directory, number, count) for number in range(count)]
    processes = [context.Process(target=_work, args=(part,), daemon=True) for part in parts]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    codes = [process.exitcode for process in processes]
    return [f"worker {number} ended with code {code}" for number, code in enumerate(codes, 1) if code]


def measure(part: Share) -> None:
    """Measure a share and write its pieces to its directory.

    Raises:
        InputError: it cannot be run here, or the evaluation would differ from the distributed one.
        AttackTimeoutError: an attack took too long.
    """
    from advbench.evaluation.evaluate import measure_share
    from advbench.external.job import prepare_job, state_of
    from advbench.runs.pieces import Pieces
    from advbench.runtime.device import reproducible

    with reproducible(part.request.threads):
        job, identity = prepare_job(part.request)
        if identity != part.identity:
            raise InputError("the evaluation would differ: code, versions, device or files differ here")
        measure_share(
            job.view,
            job.test,
            job.attacks,
            stage=0,
            seed=job.config["seed"],
            kept=Pieces(part.directory, identity, state_of(job)),
            mine=lambda number: number % part.of == part.number,
            device=job.device,
            attack_timeout=job.attack_timeout,
            examples=job.examples is not None,
        )


def _work(part: Share) -> None:
    """The work of a process: it is silent, ends with its parent, and writes pieces atomically."""
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    measure(part)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _on_node(part: Share) -> dict[str, bytes]:
    """The work of a Ray task; returns the files of its pieces by name."""
    with tempfile.TemporaryDirectory(prefix="advbench-") as folder:
        directory = Path(folder)
        measure(replace(part, directory=directory))
        # Crafted points come first: a piece must not be there without them.
        files = sorted(directory.iterdir(), key=lambda path: path.suffix == ".json")
        return {path.name: path.read_bytes() for path in files}


def _share_on_ray(
    request: EvalRequest, identity: str, directory: Path, workers: int | None, address: str
) -> list[str]:
    from advbench.runtime.ray_client import connect, load_ray
    from advbench.runtime.reasons import reason

    ray, problems = load_ray(), []
    connect(ray, address)
    try:
        count = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        task = ray.remote(num_cpus=request.threads or 1, max_retries=0)(_on_node)
        waiting = [task.remote(Share(request, identity, directory, number, count)) for number in range(count)]
        directory.mkdir(parents=True, exist_ok=True)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            try:
                files = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                problems.append(f"a task failed: {reason(getattr(error, 'cause', None) or error)}")
                continue
            for name, content in files.items():
                write_bytes(directory / Path(name).name, content)
    finally:
        ray.shutdown()
    return problems
