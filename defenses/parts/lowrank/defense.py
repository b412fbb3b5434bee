"""Base class of the defenses with low-rank adapters."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.errors import InputError
from defenses.base import Defense, Stage
from defenses.parts.lowrank.batchnorm import TaskBatchNorm
from defenses.parts.lowrank.convolution import AdaptedConv2d
from defenses.parts.lowrank.network import Norms, adapted, add_task, inject, merged
from defenses.parts.lowrank.routing import Route
from defenses.parts.lowrank.tasks import CLEAN, Task, nearest


class AdaptedDefense(Defense):
    """A classifier with low-rank adapters on its convolutions, one per task: W_e = W + s·B_e A_e.

    A batch is divided equally among the stage's attacks and clean images, each of which is a task. A
    subclass chooses in :meth:`route_for` which adapters attacks are crafted on.

    Args:
        model: the classifier; its convolutions are replaced in place.
        rank: r, the rank of an adapter.
        scale: s.
        norms: ``task`` for separate batch statistics per task, ``batch`` for ordinary batch norm.
        seed: determines every random draw.

    Raises:
        InputError: rank or scale is out of range, or the network has no convolution.
    """

    # The choice of adapters is not a weight, so a fast copy of the model would not follow it.
    follows = False

    def __init__(
        self, model: nn.Module, *, rank: int, scale: float, norms: Norms = "task", seed: int = 0
    ) -> None:
        if rank < 1:
            raise InputError(f"rank={rank} must be at least 1")
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale={scale} must be above 0 and finite")
        model, routing = inject(model, rank=rank, scale=scale, norms=norms)
        super().__init__(model, seed=seed)
        self.rank, self.scale, self.routing = rank, scale, routing
        self.tasks: list[Task] = []

    def begin(self, stage: Stage) -> None:
        """Add an adapter for each new attack, and one for clean images in the first stage.

        From the second stage on, only the adapters of the stage's attacks train; all else is frozen.

        Raises:
            InputError: the stage has no attack.
        """
        if not stage.attacks:
            raise InputError(f"{self.info.name} needs an attack to train against")
        if stage.index > 1:
            self.model.requires_grad_(False)
        for task in (CLEAN, *map(Task.of, stage.attacks)):
            if task not in self.tasks:
                self.add_task(task)
        if stage.index > 1:
            for attack in stage.attacks:
                self._adapter(self.tasks.index(Task.of(attack))).requires_grad_(True)

    def add_task(self, task: Task) -> None:
        """Add an adapter for one more task; its running statistics start as those of clean images."""
        generator = keyed_generator("adapter", self.seed, len(self.tasks))
        add_task(self.model, generator, 0 if self.tasks else None)
        self.tasks.append(task)

    def route_for(self, attack: Attack | None) -> Route:
        """The route for crafting with ``attack`` (None: clean images), by default its task's adapter."""
        return Route(task=nearest(self.tasks, attack))

    def craft(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Craft adversarial points against the route that :meth:`route_for` chooses for the attack."""
        with contextlib.ExitStack() as stack:
            for module in adapted(self.model):
                if isinstance(module, AdaptedConv2d):
                    stack.enter_context(module.kept())
            stack.enter_context(self.routing.along(self.route_for(attack)))
            return super().craft(attack, x, y)

    def task_batch(
        self, x: Tensor, y: Tensor, stage: Stage, *, clean: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Divide the batch equally among attacks and clean images: points, labels, tasks int64 (N,)."""
        shares: list[Attack | None] = [*([None] if clean else []), *stage.attacks]
        points, labels, tasks = [], [], []
        for number, attack in enumerate(shares):
            # Batches are shuffled, so strided shares have a fair share of each class.
            part, truth = x[number :: len(shares)], y[number :: len(shares)]
            points.append(part if attack is None else self.craft(attack, part, truth))
            labels.append(truth)
            place = nearest(self.tasks, attack)
            tasks.append(torch.full_like(truth, 0 if place is None else place))
        return torch.cat(points), torch.cat(labels), torch.cat(tasks)

    def by_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (N, K) with each sample passed through its own task's adapter; ``tasks`` int64 (N,)."""
        with self.routing.along(Route.by_task(tasks, len(self.tasks), x.dtype)):
            logits: Tensor = self(x)
        return logits

    def merged(self, task: int | Tensor | None) -> nn.Module:
        """A plain network in eval mode: for a task index, fixed weights (E,), or None for the backbone."""
        return merged(self.model, task).eval()

    def train(self, mode: bool = True) -> Self:
        """Set train mode, except that shared batch norm has frozen statistics after stage 1."""
        super().train(mode)
        if mode and self.stages:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm) and not isinstance(module, TaskBatchNorm):
                    module.eval()
        return self

    def spec(self) -> dict[str, Any]:
        """Adds the tasks, each of which has an adapter."""
        return {**super().spec(), "tasks": [asdict(task) for task in self.tasks]}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add adapters for the tasks of ``spec``."""
        for task in spec["tasks"][len(self.tasks) :]:
            self.add_task(Task(**task))

    def _adapter(self, task: int) -> nn.ParameterList:
        """The parameters of a task's adapter."""
        found = nn.ParameterList()
        for module in adapted(self.model):
            if isinstance(module, AdaptedConv2d):
                found.extend([module.down[task], module.up[task]])
        return found
