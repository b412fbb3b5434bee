"""The interface between a defense and the training loop."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks_pool.calling.guard import Passes
from defenses.metadata import DefenseInfo
from defenses.training.plan import TrainPlan
from defenses.training.stage import Stage


class Trainable(nn.Module):
    """Interface that training, selection and snapshots use; :class:`defenses.Defense` implements it."""

    info: ClassVar[DefenseInfo]
    seed: int
    passes: Passes
    generator: torch.Generator
    part: int = 0
    """Increased by a defense whose training begins anew within a stage; averages of weights start again."""
    compiled: tuple[nn.Module, ...]
    """A model and its compiled form, which training passes use; empty if they are not compiled."""

    @property
    def reduced(self) -> bool:
        """Whether :meth:`prepare` chose bfloat16."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer | None:
        """Return a new optimizer for a stage, or None if nothing is trained."""
        raise NotImplementedError

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train on one clean batch; return the loss and its terms."""
        raise NotImplementedError

    def prepare(self, x: Tensor, plan: TrainPlan) -> None:
        """Choose the precision of a stage from its first batch (N, C, H, W)."""
        raise NotImplementedError

    def unprepare(self) -> None:
        """Undo :meth:`prepare` after a stage."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Return JSON data from which the structure can be rebuilt before weights are loaded."""
        raise NotImplementedError

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Rebuild the structure that ``spec`` describes."""
        raise NotImplementedError

    def training_state(self) -> dict[str, Any]:
        """Return the state that resuming needs in addition to the weights."""
        raise NotImplementedError

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`training_state`."""
        raise NotImplementedError
