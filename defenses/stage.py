"""What a stage of training is, where it stands, and how it fails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from attacks_pool.attack import Attack
from defenses.plan import TrainPlan

Batches = Iterable[tuple[Tensor, Tensor]]


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number; says at which stage, epoch and step."""


@dataclass(frozen=True)
class Stage:
    """One stage: its number from 1, the attacks to train against (training knobs), the plan. No test data.

    In a step, ``done`` is the share of the stage in [0, 1) that is behind; epoch by epoch where the data have
    no length.
    """

    index: int
    attacks: tuple[Attack, ...]
    plan: TrainPlan
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
