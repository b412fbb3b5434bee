"""Training speed of two processes with one core each, against one process with one core.

    python benchmarks/processes.py
    python benchmarks/processes.py --batches 3 --side 8 --model digits-cnn --repeats 1

Adversarial training with PGD on random images, in turns: one process alone; two that ``torchrun`` starts,
which share each batch and exchange gradients with gloo; and two that train networks of their own on half
batches, which is the most that two cores of this machine can do together. Each process is bound to one core.
The speed is that of the batches after the first one, in images per second. The script exits with 1 if the
median for two processes is below 1.7 times that for one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from advbench.models import build_model
from attacks_pool import pool
from defenses import Progress, TrainPlan, registry

LEAST_RATIO = 1.7
ALONE, TOGETHER, APART = "1 process", "2 processes", "2 that share nothing"
SOURCE = Path(__file__).resolve()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE.parents[1]), "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Measure in turns and return the exit code; with ``--worker``, be one of the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet-20", help="network to train")
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=128, help="images of a whole batch")
    parser.add_argument("--batches", type=int, default=8, help="batches that are timed in each turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.model, options.side, options.batch, options.batches)
        return 0
    speeds: dict[str, list[float]] = {ALONE: [], TOGETHER: [], APART: []}
    for _ in range(options.repeats):
        speeds[ALONE].append(speed_of(1, sys.argv[1:]))
        speeds[TOGETHER].append(speed_of(2, sys.argv[1:]))
        speeds[APART].append(speed_apart([*sys.argv[1:], "--batch", str(options.batch // 2)]))
    print(f"{options.model}, {options.side} pixels, batches of {options.batch}; images per second:")
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    for name, found in speeds.items():
        turns = " ".join(f"{speed:8.1f}" for speed in found)
        print(f"{name:<22} {turns}   median {medians[name]:.1f}")
    ratio = medians[TOGETHER] / medians[ALONE]
    print(f"two processes are {ratio:.2f} times as fast as one; at least {LEAST_RATIO} is expected")
    print(f"two that share nothing are {medians[APART] / medians[ALONE]:.2f} times as fast")
    return 0 if ratio >= LEAST_RATIO else 1


def speed_apart(given: list[str]) -> float:
    """The images per second of two processes that train networks of their own, together.

    Raises:
        RuntimeError: one of them fails.
    """
    started = [
        subprocess.Popen(
            [sys.executable, str(SOURCE), "--worker", *given],
            env={**ENVIRONMENT, "RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("".join(errors for _, errors in printed))
    return sum(float(output.split()[-1]) for output, _ in printed)


def speed_of(count: int, given: list[str]) -> float:
    """The images per second of ``count`` processes.

    Raises:
        RuntimeError: they fail.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [sys.executable, *(launcher if count > 1 else []), str(SOURCE), "--worker", *given],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def train(network: str, side: int, size: int, batches: int) -> None:
    """Train for one batch more than ``batches``; print the images per second of the others.

    Of processes that train together, process 0 prints.
    """
    number, count = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    torch.set_num_threads(1)
    if count > 1:
        distributed.init_process_group("gloo")
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(batches + 1, size, 3, side, side, generator=draws)
    labels = torch.randint(10, (batches + 1, size), generator=draws)
    model = build_model(network, num_classes=10, in_channels=3, image_size=side, seed=0)
    defense = registry.build("at", model, seed=0)
    ended: list[float] = []

    def progress(_now: Progress) -> None:
        ended.append(time.perf_counter())

    plan = TrainPlan(epochs=1, batch_size=size)
    pgd = pool.get("pgd", eps=8 / 255)
    defense.fit(list(zip(images, labels, strict=True)), [pgd], plan=plan, progress=progress)
    if number == 0 or count == 1:
        print(size * batches / (ended[-1] - ended[0]))
    if count > 1:
        # Neither ends while the other may still be exchanging.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
