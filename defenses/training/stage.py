"""What a stage of training is, where it stands, and how it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks_pool.attack import Attack
from attacks_pool.calling.batches import check_batch
from defenses.training.plan import TrainPlan


def once_more(stage: Stage, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The clean batches, checked and on ``device``, as one epoch more would have them, unaugmented."""
    if hasattr(stage.data, "set_epoch"):
        stage.data.set_epoch((stage.index - 1) * 100_000 + stage.plan.epochs)
    for images, labels in stage.data:
        yield check_batch(images.to(device), labels.to(device))


Batches = Iterable[tuple[Tensor, Tensor]]


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number; says at which stage, epoch and step."""


@dataclass(frozen=True)
class Stage:
    """One stage: its number from 1, the attacks to train against (training knobs), the plan. No test data.

    ``data`` are the clean batches that it trains on, for methods that look at them in ``begin`` or ``end``.
    ``done`` is the share of the stage that is behind, in [0, 1); within an epoch it moves only where the
    loader has a length.
    """

    index: int
    attacks: tuple[Attack, ...]
    plan: TrainPlan
    data: Batches = field(default=(), repr=False, compare=False)
    done: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where training stands after a batch; ``batches`` is 0 when the loader has no length."""

    stage: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: dict[str, float]
