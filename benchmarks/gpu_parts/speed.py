"""What the device takes: the matrix rate, and our attacks and training against the peers' in turns."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable

import attacks as peers
import torch
import training as loops
from torch import nn

from advbench.data import Split
from advbench.models import build_model
from gpu_parts.report import Report, SkippedError

TINY_EPS = 0.0001
"""A ball in which hardly any point falls, so that every library takes all its steps."""


def machine(report: Report) -> None:
    """The device, and its rate of bfloat16 matrix products."""
    device = report.device
    report.figure("torch", torch.__version__)
    report.figure("cores", os.cpu_count())
    if device.type == "cuda":
        report.figure("device", torch.cuda.get_device_name(device))
        report.figure("memory in GB", torch.cuda.get_device_properties(device).total_memory / 1e9)
    report.figure("bfloat16 matrix rate in TFLOP/s", rate(report) / 1e12)


def rate(report: Report) -> float:
    """Floating-point operations a second."""
    return loops.bfloat16_rate(report.device, 128 if report.short else 8192, 2 if report.short else 20)


def network(report: Report) -> nn.Module:
    """The network of all comparisons, with random weights."""
    channels, side, _ = report.sizes.shape
    return build_model(report.sizes.network, num_classes=10, in_channels=channels, image_size=side, seed=0)


def images(report: Report, count: int) -> Split:
    """Random images and labels."""
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(count, *report.sizes.shape, generator=draws)
    return Split(x, torch.randint(0, 10, (count,), generator=draws))


def pgd(report: Report) -> None:
    """PGD of the same steps, ours and torchattacks'."""
    points, steps = report.sizes.pgd
    needs("torchattacks")
    peer = peers.pgd_peers(steps, TINY_EPS)[0]
    against(report, f"pgd:eps={TINY_EPS:.4f},steps={steps}", peer, points)


def autoattack(report: Report) -> None:
    """AutoAttack of the same budget, ours and pyautoattack's."""
    needs("pyautoattack")
    against(
        report, f"autoattack:eps={TINY_EPS:.4f}", peers.pyautoattack_peer(TINY_EPS), report.sizes.autoattack
    )


def needs(package: str) -> None:
    """Skip the part if the peer is not installed."""
    if importlib.util.find_spec(package) is None:
        raise SkippedError(f"{package} is not installed")


def against(report: Report, text: str, peer: tuple[str, str, peers.Peer], points: int) -> None:
    """Seconds and memory of our attack and of a peer's, and their ratio."""
    model, name = network(report).to(report.device).eval(), report.sizes.network
    x = images(report, points).x.to(report.device)
    with torch.no_grad():
        data = Split(x, model(x).argmax(1))
    results: dict[str, peers.Result] = {}

    def ours() -> float:
        results["advbench"] = peers.ours(report.part, name, model, data, text, 0)
        return results["advbench"].seconds

    def theirs() -> float:
        results[peer[0]] = peers.theirs(report.part, name, model, data, peer, TINY_EPS, 0)
        return results[peer[0]].seconds

    sides = {"advbench": ours, peer[0]: theirs}
    seconds = report.in_turns({side: measured(report, side, run) for side, run in sides.items()})
    for side, result in results.items():
        report.figure(f"{side}: robust accuracy in %", result.robust)
    invalid = results["advbench"].invalid
    report.check("points outside the ball", invalid == 0, invalid, "0")
    compared(report, {side: points / value for side, value in seconds.items()}, "points a second")


def training(report: Report) -> None:
    """Adversarial training with PGD, ours and the plain loop with torchattacks, of equal steps."""
    needs("torchattacks")
    sizes, device = report.sizes, report.device
    data = images(report, sizes.batch * sizes.steps)
    task = loops.Task(sizes.network, lambda: network(report), data, (8 / 255,), 1, sizes.batch, "sgd", 0.01)
    start = network(report).to(device)

    def plain() -> float:
        return loops.timed(loops.Plain(copy.deepcopy(start), task, 0).at, device)[1]

    def ours() -> float:
        return loops.timed(lambda: loops.ours(loops.AT, copy.deepcopy(start), task, 0), device)[1]

    sides = {side: measured(report, side, run) for side, run in (("advbench", ours), ("plain loop", plain))}
    speeds = {side: task.images / value for side, value in report.in_turns(sides).items()}
    compared(report, speeds, "images a second")
    share = 2 * loops.work(task, device) * speeds["advbench"] / rate(report)
    report.figure("advbench: share of the measured bfloat16 rate in %", 100 * share)


def measured(report: Report, side: str, run: Callable[[], float]) -> Callable[[], float]:
    """``run``, which also reports the most memory that it takes on the device."""

    def watched() -> float:
        if report.device.type != "cuda":
            return run()
        torch.cuda.reset_peak_memory_stats(report.device)
        seconds = run()
        report.figure(f"{side}: peak memory in MB", torch.cuda.max_memory_allocated(report.device) / 1e6)
        return seconds

    return watched


def compared(report: Report, speeds: dict[str, float], unit: str) -> None:
    """Report the speed of both sides and their ratio."""
    for side, speed in speeds.items():
        report.figure(f"{side}: {unit}", speed)
    first, other = speeds.values()
    report.figure("advbench is faster by a factor of", first / other)
