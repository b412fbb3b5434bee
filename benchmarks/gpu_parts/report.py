"""The sizes that all parts share, and the report of one part, which is on disk after each result."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attacks_pool import pool
from defenses import registry


class SkippedError(Exception):
    """The part cannot run here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much the parts do; a network takes images of ``shape`` (C, H, W)."""

    networks: tuple[str, ...]
    attacks: str
    defenses: tuple[str, ...]
    points: int
    network: str
    shape: tuple[int, int, int]
    pgd: tuple[int, int]
    """Points and steps of the comparison with torchattacks."""
    autoattack: int
    batch: int
    steps: int
    turns: int


FULL = Sizes(
    networks=("digits-cnn", "lenet", "resnet-20", "resnet18", "preact-resnet-18", "wrn-28-10"),
    attacks=(
        "fgsm,pgd,pgd-l1,pgd-l2,mim,eotpgd,apgd,apgd-t,apgd-ce-l2,cw,ddn,deepfool,ead,fab,fab-l2,fmn,"
        "square,square-l2,rays,spsa,elastic,rotation-translation,corruption-fog,autoattack"
    ),
    defenses=tuple(registry.names()),
    points=100,
    network="resnet18",
    shape=(3, 32, 32),
    pgd=(1024, 20),
    autoattack=64,
    batch=256,
    steps=20,
    turns=5,
)
SHORT = Sizes(
    networks=("digits-cnn",),
    attacks="fgsm,pgd:steps=5,pgd-l2:steps=5,apgd:steps=5,cw:steps=5,square:steps=20",
    defenses=("at", "mid"),
    points=16,
    network="digits-cnn",
    shape=(1, 8, 8),
    pgd=(32, 5),
    autoattack=2,
    batch=16,
    steps=2,
    turns=1,
)


class Report:
    """The results of a part: checks that hold or fail, and figures that are only shown.

    Args:
        part: the name of the part.
        file: where the report is written as JSON after each result, so that cutting a part off loses none.
        device: the device to measure.
        sizes: how much to do.
        seconds: the time limit of the part, which comparisons of speed keep to.
    """

    def __init__(self, part: str, file: Path, device: torch.device, sizes: Sizes, seconds: float) -> None:
        self.part, self.file, self.device, self.sizes = part, file, device, sizes
        self.short = sizes is SHORT
        self.seconds, self.began = seconds, time.perf_counter()
        self.content: dict[str, Any] = {"checks": [], "figures": {}}

    def check(self, name: str, holds: bool, found: object, allowed: object) -> None:
        """Add a check: what was found, and which values are allowed."""
        self.content["checks"].append({"name": name, "holds": holds, "found": found, "allowed": allowed})
        self.save()

    def figure(self, name: str, value: object) -> None:
        """Add a figure."""
        self.content["figures"][name] = value
        self.save()

    def save(self, **more: object) -> None:
        """Write the report, with ``more`` fields."""
        self.content |= more
        text = json.dumps({**self.content, "seconds": time.perf_counter() - self.began})
        draft = self.file.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.file)

    def in_turns(self, sides: Mapping[str, Callable[[], float]]) -> dict[str, float]:
        """The median seconds of each side, measured in turns as long as the part has time for another turn.

        The first turn, in which kernels are chosen and memory is allocated, does not count if others follow.
        """
        found: dict[str, list[float]] = {name: [] for name in sides}
        longest = 0.0
        for turn in range(self.sizes.turns):
            began = time.perf_counter()
            if turn and began - self.began + 1.5 * longest > self.seconds:
                break
            for name, side in sides.items():
                found[name].append(side())
            longest = max(longest, time.perf_counter() - began)
            self.figure("seconds of each turn", found)
        return {name: statistics.median(times[1:] or times) for name, times in found.items()}


def budgets(text: str) -> list[Any]:
    """Bound attacks with the budgets of the digits."""
    return list(pool.sequence(text, budget="digits"))
