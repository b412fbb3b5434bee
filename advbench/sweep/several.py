"""Runs one cell in several processes of a Ray cluster, which Ray Train starts."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advbench.sweep.on_node import Message, messages
from advbench.sweep.one_run import Job, finished, make

AHEAD = 3
"""How many messages of process 0 may wait to be fetched."""
LAST = ("whole", "failed")
"""The kinds of message after which nothing comes."""
SETTINGS = {
    # Paths in a grid are relative to where the sweep was started, not to a directory of Ray Train.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Seconds that a run may wait for its resources on a busy cluster.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",
}
LIMIT = 7200
"""Seconds for one exchange in training, which only a fault can reach."""


def run_together(job: Job, processes: int, resources: dict[str, float]) -> Iterator[Message]:
    """Run a cell in several processes; yield what `advbench.sweep.on_node.messages` yields in process 0.

    Args:
        job: the cell.
        processes: their number.
        resources: of each process: ``CPU``, ``GPU`` and ``memory``.
    """
    from ray.util.queue import Queue

    os.environ.update(SETTINGS)
    outbox: Any = Queue(maxsize=AHEAD, actor_options={"num_cpus": 0})

    def train() -> None:
        why = "its processes ended and sent nothing"
        try:
            _train(job, processes, resources, outbox)
        except Exception as error:
            # Ray's message is the long trace of a process.
            why = f"one of its {processes} processes was lost: {type(error).__name__}"
        # Unread where process 0 has sent its last message already.
        outbox.put(("failed", why))

    trainer = threading.Thread(target=train, daemon=True)
    trainer.start()
    while True:
        message = outbox.get()
        if message[0] in LAST:
            trainer.join()
        yield message
        if message[0] in LAST:
            return


def _train(job: Job, processes: int, resources: dict[str, float], outbox: Any) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    # Its classes depend on a setting that type checkers do not know.
    train: Any = ray.train
    gpu = bool(resources.get("GPU"))
    with tempfile.TemporaryDirectory(prefix="advbench-") as folder:
        TorchTrainer(
            _take_part,
            train_loop_config={"job": job, "outbox": outbox},
            torch_config=TorchConfig("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=LIMIT),
            scaling_config=train.ScalingConfig(
                num_workers=processes, use_gpu=gpu, resources_per_worker=resources, placement_strategy="PACK"
            ),
            run_config=train.RunConfig(
                name=job.identity,
                storage_path=folder,
                # Hide GPUs that Ray leaves visible: a cell without GPUs was planned for the CPU.
                worker_runtime_env={} if gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
            ),
        ).fit()


def _take_part(config: dict[str, Any]) -> None:
    """One process of a run: process 0 leads and sends its files, and the others do what it orders."""
    from advbench.benchmark.crew import take_part
    from advbench.runtime.team import Leader, Member, join

    others, job, outbox = join(), config["job"], config["outbox"]
    if isinstance(others, Member):
        # Process 0 raises the same, and reports it.
        with contextlib.suppress(Exception):
            take_part(others)
    elif isinstance(others, Leader):
        leader = others
        leader.last_line = lambda line: outbox.put(("failed", line))

        def lead(job: Job, runs_dir: Path) -> Path:
            with leader.leading() as finish:
                path = finished(job, runs_dir)
                if path is not None:
                    finish(None)
            return path or make(job, runs_dir)

        for message in messages(job, lead):
            outbox.put(message)
