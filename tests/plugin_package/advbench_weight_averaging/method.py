"""Adversarial training, answered by an exponential moving average of its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.errors import InputError
from defenses import Defense, DefenseInfo, Stage, TrainPlan
from defenses.parts.mixing import craft_batch


class WeightAveraging(Defense):
    """L = CE(f(x̃), y), and after each step f̄ ← d · f̄ + (1 − d) · f; f̄ answers (arXiv:2010.03593).

    x̃ is crafted on f̄, which is what an adversary would meet. Batch-norm statistics are averaged too.

    Args:
        model: the classifier.
        decay: d, at least 0 and below 1.
        seed: determines every draw.

    Raises:
        InputError: d is out of range.
    """

    info = DefenseInfo(name="weight-averaging", paper="2010.03593", regimes=("continual", "joint"))

    def __init__(self, model: nn.Module, *, decay: float = 0.9, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay} must be at least 0 and below 1")
        self.decay = decay
        self.average = copy.deepcopy(model).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of f in training, of f̄ elsewhere."""
        logits: Tensor = (self.model if self.training else self.average)(x)
        return logits.float()

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f(x̃), y)."""
        x_adv, y_adv = craft_batch(
            self.craft, stage.attacks, x, y, mix="split", generator=self.generator, predict=self
        )
        return F.cross_entropy(self(x_adv), y_adv)

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """A step of f, then f̄ ← d · f̄ + (1 − d) · f."""
        losses = super().step(x, y, stage, optimizer)
        state = self.model.state_dict()
        for name, averaged in self.average.state_dict().items():
            if averaged.is_floating_point():
                averaged.lerp_(state[name], 1 - self.decay)
            else:
                averaged.copy_(state[name])
        return losses

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer:
        """Over f alone."""
        return plan.make_optimizer(list(self.model.parameters()))
