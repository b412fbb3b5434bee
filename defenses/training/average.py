"""Averages of the weights over the steps or epochs of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from defenses.training.packing import detached, map_tensors
from defenses.training.plan import TrainPlan
from defenses.training.trainable import Trainable


class Average:
    """The average of a module's trained parameters.

    The first weights start the average. With a the average of k weights and θ the next ones:

        ema: a ← d·a + (1 − d)·θ,  d = min(average_decay, (1 + k)/(10 + k)),
        swa: a ← (k·a + θ)/(k + 1).

    The smaller d of the first steps lets short stages forget their start. If the module begins to train
    other parameters or its ``part`` changes, because the defense enters another phase, the average starts
    again. Parameters that are frozen keep their values, and so do buffers, except that batch-norm statistics
    are measured again, see :func:`measured_anew`.

    Args:
        module: the module that trains.
        plan: the plan of the stage; its ``average`` is ``ema`` or ``swa``.
    """

    def __init__(self, module: Trainable, plan: TrainPlan) -> None:
        self.module, self.plan = module, plan
        self.weights: dict[str, Tensor] = {}
        self.count = self.part = 0

    def step(self) -> None:
        """Take up the weights after an optimizer step."""
        if self.plan.average == "ema":
            self._add(min(self.plan.average_decay, (1 + self.count) / (10 + self.count)))

    def epoch(self, done: int) -> None:
        """Take up the weights after ``done`` finished epochs."""
        # The last epoch always counts, so that no average is empty.
        begun = done > self.plan.average_start * self.plan.epochs or done == self.plan.epochs
        if self.plan.average == "swa" and begun:
            self._add(self.count / (self.count + 1))

    def state(self) -> dict[str, Any]:
        """The average as copies, for a snapshot."""
        return {"weights": map_tensors(self.weights, detached), "count": self.count, "part": self.part}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state`."""
        self.weights, self.count = map_tensors(state["weights"], detached), int(state["count"])
        self.part = int(state["part"])

    @torch.no_grad()
    def take_over(self) -> None:
        """Copy the average into the module."""
        for name, parameter in self.module.named_parameters():
            if name in self.weights and parameter.requires_grad:
                parameter.copy_(self.weights[name])

    @torch.no_grad()
    def _add(self, keep: float) -> None:
        now = {
            name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad
        }
        if now.keys() != self.weights.keys() or self.module.part != self.part:
            self.weights, self.count, self.part = map_tensors(now, detached), 1, self.module.part
            return
        for name, parameter in now.items():
            self.weights[name].lerp_(parameter, 1 - keep)
        self.count += 1


def has_statistics(module: nn.Module) -> bool:
    """Whether training ``module`` in its current mode changes batch-norm statistics."""
    return any(_measures(one) for one in module.modules())


@contextmanager
def measured_anew(module: nn.Module) -> Iterator[None]:
    """Within the block, batch-norm statistics are the plain mean over the batches that the module sees.

    Statistics that no batch of the block updates keep their values. Counts of batches stay as they were.
    """
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts = [buffer for norm in norms for buffer in norm.buffers(False) if not buffer.is_floating_point()]
    before = [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = None
    for count in counts:
        count.zero_()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)


def _measures(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.training
