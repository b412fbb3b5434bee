"""What ``compile=on`` brings: training steps of one defense with and without it, in the same process.

    python benchmarks/compiled.py
    python benchmarks/compiled.py --model lenet --defense trades --images 64

Prints the seconds that compiling takes, the median seconds of a training step (processor time of one thread
on a processor, by the clock on a GPU) without and with it, and after how many steps it has paid.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from advbench.models import build_model
from attacks_pool import pool
from defenses import Defense, TrainPlan, registry
from defenses.base import Stage


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet-20")
    parser.add_argument("--defense", action="append", help="standard and at by default")
    parser.add_argument("--images", type=int, default=128, help="images in a batch")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.defense or ("standard", "at"):
        # A new cache, so that compiling takes its whole time.
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            report(name, given)


def report(name: str, given: argparse.Namespace) -> None:
    """Measure one defense and print a line."""
    network = build_model(
        given.model, num_classes=10, in_channels=given.channels, image_size=given.side, seed=0
    )
    defense = registry.build(name, network.to(given.device))
    x = torch.rand(given.images, given.channels, given.side, given.side, device=given.device)
    y = torch.randint(0, 10, (given.images,), device=given.device)
    seconds, compiling = {}, 0.0
    for mode in ("off", "on"):
        plan = TrainPlan(mixed_precision="off", compile=mode)
        stage = Stage(1, (pool.get("pgd", eps=8 / 255).for_training(),), plan)
        optimizer = plan.make_optimizer(list(defense.parameters()))
        began = time.perf_counter()
        defense.prepare(x, plan)
        step(defense, x, y, stage, optimizer)
        compiling = time.perf_counter() - began
        seconds[mode] = statistics.median(
            timed(lambda: step(defense, x, y, stage, optimizer), given.device)  # noqa: B023 - called at once
            for _ in range(given.steps)
        )
        defense.unprepare()
    gain = seconds["off"] - seconds["on"]
    pays = f"it has paid after {compiling / gain:,.0f} steps" if gain > 0 else "it never pays"
    print(
        f"{name} on {given.model}: {seconds['off']:.3f} s a step, compiled {seconds['on']:.3f} s "
        f"({seconds['off'] / seconds['on']:.2f} times as fast); compiling {compiling:.0f} s: {pays}",
        flush=True,
    )


def step(
    defense: Defense, x: torch.Tensor, y: torch.Tensor, stage: Stage, optimizer: torch.optim.Optimizer
) -> None:
    """One training step, as ``fit`` takes it."""
    defense.train()
    defense.step(x, y, stage, optimizer)


def timed(call: Callable[[], None], device: str) -> float:
    """Seconds of a call."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    main()
