"""Frozen copies of a network: the previous stage's model, or a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.losses import log_probabilities
from defenses.base import Defense
from defenses.training.stage import Stage


def frozen_copy(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of ``model`` in eval mode without gradients, with the weights of ``state`` if given."""
    found = copy.deepcopy(model).eval().requires_grad_(False)
    if state is not None:
        found.load_state_dict(state)
    return found


class OldModelDefense(Defense):
    """A defense that compares itself with f_old, the frozen model of the previous stage.

    f_old exists during training, from the second stage on.
    """

    # A tuple keeps it from being registered as a submodule.
    _old: tuple[nn.Module, ...] = ()

    def begin(self, stage: Stage) -> None:
        """Freeze f_old: a copy of the model after the previous stage."""
        super().begin(stage)
        if stage.index > 1:
            self._old = (frozen_copy(self.model),)

    def end(self, stage: Stage) -> None:
        """Drop f_old; the next stage copies the model again."""
        super().end(stage)
        self._old = ()

    def divergence_from_old(self, x: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(f_old(x) ‖ f(x)), mean over the batch, of softmax(logits / temperature).

        Args:
            x: images (N, C, H, W).
            logits: f(x), (N, K).
            temperature: divides the logits of both models.
        """
        with torch.no_grad():
            old = self._old[0](x).to(logits.dtype)
        self.passes.forwards += len(x)
        return F.kl_div(
            log_probabilities(logits / temperature),
            log_probabilities(old / temperature),
            log_target=True,
            reduction="batchmean",
        )

    def training_state(self) -> dict[str, Any]:
        """Adds the weights of f_old under ``old``, or None without f_old."""
        return {**super().training_state(), "old": self._old[0].state_dict() if self._old else None}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Rebuilds f_old with the structure of the current model."""
        super().load_training_state(state)
        self._old = () if state["old"] is None else (frozen_copy(self.model, state["old"]),)
