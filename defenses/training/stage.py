"""A stage of training, its progress, and the error for a loss that diverges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks_pool.attack import Attack
from attacks_pool.calling.batches import check_batch
from defenses.training.plan import TrainPlan


def once_more(stage: Stage, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Run one more epoch over the clean, unaugmented batches; they are checked and moved to ``device``."""
    if hasattr(stage.data, "set_epoch"):
        stage.data.set_epoch((stage.index - 1) * 100_000 + stage.plan.epochs)
    for images, labels in stage.data:
        yield check_batch(images.to(device), labels.to(device))


Batches = Iterable[tuple[Tensor, Tensor]]


class TrainingDivergedError(RuntimeError):
    """The loss is not finite; the message gives stage, epoch and step."""


@dataclass(frozen=True)
class Stage:
    """One stage: its number from 1, the attacks to train against (with training knobs) and the plan.

    ``data`` are the clean training batches, for defenses that use them in ``begin`` or ``end``; test data
    are never included. ``done`` is the finished share of the stage, in [0, 1); it changes within an epoch
    only if the loader has a length.
    """

    index: int
    attacks: tuple[Attack, ...]
    plan: TrainPlan
    data: Batches = field(default=(), repr=False, compare=False)
    done: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Progress of training after a batch; ``batches`` is 0 if the loader has no length."""

    stage: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: dict[str, float]
