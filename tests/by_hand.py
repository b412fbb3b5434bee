"""What the tests of defenses share: attacks, random points, the papers' formulas, equality bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks_pool import pool
from defenses import Defense, Snapshot


class Stop(BaseException):
    """Stands for a signal, in a process that goes on."""


def attack(name: str = "fgsm", **knobs: Any) -> Any:
    """An attack with the digits' budget, as a stage has it."""
    return pool.get(name, budget="digits", **knobs).for_training()


def attacks(text: str = "fgsm,pgd") -> list[Any]:
    """Attacks with the digits' budgets."""
    return pool.sequence(text, budget="digits")


def small(*, norm: bool = True) -> nn.Sequential:
    """A classifier of the digits with batch norm over feature maps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms = [nn.BatchNorm2d(6)] if norm else []
        conv = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        return nn.Sequential(conv, *norms, nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))


def points(tensors: int, count: int = 12, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """So many batches of images 1×8×8, and their labels, all random."""
    draws = torch.Generator().manual_seed(3)
    images = [torch.rand(count, 1, 8, 8, generator=draws, dtype=dtype) for _ in range(tensors)]
    return [*images, torch.randint(10, (count,), generator=draws)]


def mean(values: Sequence[float]) -> float:
    """Over samples."""
    return sum(values) / len(values)


def softmax(model: nn.Module, x: Tensor, temperature: float = 1.0) -> list[list[float]]:
    """p_k = exp(z_k / T) / Σ exp(z / T), a sample at a time."""
    rows = []
    with torch.no_grad():
        for image in x:
            powers = [math.exp(float(z) / temperature) for z in model(image[None])[0]]
            rows.append([power / sum(powers) for power in powers])
    return rows


def divergence(p: Sequence[Sequence[float]], q: Sequence[Sequence[float]]) -> float:
    """KL(p ‖ q) = Σ_k p_k log(p_k / q_k), mean over samples."""
    rows = zip(p, q, strict=True)
    return mean([sum(a * math.log(a / b) for a, b in zip(*row, strict=True)) for row in rows])


def cross_entropy(p: Sequence[Sequence[float]], y: Tensor) -> float:
    """−log p_y, mean over samples."""
    return mean([-math.log(row[int(label)]) for row, label in zip(p, y, strict=True)])


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of its state dict."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first: Any, second: Any) -> bool:
    """Whether two nested values are the same, bit for bit; of modules, whether their state dicts are."""
    if isinstance(first, nn.Module):
        return equal(dict(first.state_dict()), dict(second.state_dict()))
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def stopped_and_resumed(
    build: Callable[[], Defense], data: Any, stages: Sequence[list[Any]], *, at: int, **given: Any
) -> tuple[Defense, Defense, list[Snapshot]]:
    """Train through ``stages``, once without a break and once stopped in the last stage.

    Args:
        build: makes the same defense at each call.
        data: as for ``fit``.
        stages: the attacks of each stage; all but the last are trained for one epoch.
        at: the batch of the last stage after which it is stopped, counted from 1.
        given: ``plan`` and others for ``fit`` in the last stage.

    Returns:
        the defense without a break, the resumed one, and the snapshots until the stop, as read from bytes.
    """
    whole, broken, resumed = build(), build(), build()
    taken: list[bytes] = []
    seen: list[Any] = []

    def stop(now: Any) -> None:
        seen.append(now)
        if len(seen) == at:
            raise Stop

    plan = given["plan"].model_copy(update={"epochs": 1, "select": "last"})
    for defense in (whole, broken):
        for met in stages[:-1]:
            defense.fit(data, met, plan=plan)
    expected = whole.fit(data, stages[-1], **given)
    keep = {"progress": stop, "checkpoint": lambda snapshot: taken.append(snapshot.pack())}
    with pytest.raises(Stop):
        broken.fit(data, stages[-1], **given, **keep)
    snapshots = [Snapshot.unpack(one) for one in taken]
    with torch.random.fork_rng():
        torch.manual_seed(at)
        history = resumed.fit(data, stages[-1], **given, resume=snapshots[-1])
    assert history == expected
    assert equal(whole, resumed)
    assert equal(whole.training_state(), resumed.training_state())
    assert whole.passes == resumed.passes
    assert whole.spec() == resumed.spec()
    return whole, resumed, snapshots
