"""What training asks of a defense."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks_pool.calling.guard import Passes
from defenses.metadata import DefenseInfo
from defenses.training.plan import TrainPlan
from defenses.training.stage import Stage


class Trainable(nn.Module):
    """What the training loop, selection and snapshots ask of a defense; :class:`defenses.Defense` has it."""

    info: ClassVar[DefenseInfo]
    seed: int
    passes: Passes
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer | None:
        """A fresh optimizer for a stage; None where nothing is trained."""
        raise NotImplementedError

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train on one clean batch; the loss and its terms."""
        raise NotImplementedError

    def prepare(self, x: Tensor, plan: TrainPlan) -> None:
        """Choose the arithmetic of a stage by its first batch (N, C, H, W)."""
        raise NotImplementedError

    def unprepare(self) -> None:
        """Undo :meth:`prepare` after a stage."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """JSON that rebuilds the structure before weights are loaded."""
        raise NotImplementedError

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Rebuild the structure that ``spec`` describes."""
        raise NotImplementedError

    def training_state(self) -> dict[str, Any]:
        """What resuming needs beside the weights."""
        raise NotImplementedError

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`training_state` gave."""
        raise NotImplementedError
