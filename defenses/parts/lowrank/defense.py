"""Base class of the defenses with low-rank adapters."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import asdict
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import keyed_generator, strided
from attacks_pool.errors import InputError, unknown
from defenses.base import Defense, Stage
from defenses.parts.lowrank.batchnorm import TaskBatchNorm
from defenses.parts.lowrank.coverage import Coverage, coverage_of
from defenses.parts.lowrank.layer import AdaptedLayer
from defenses.parts.lowrank.network import Adapt, Norms, adapted, add_task, inject, merged
from defenses.parts.lowrank.routing import Route
from defenses.parts.lowrank.tasks import CLEAN, Task, nearest
from defenses.training.plan import TrainPlan

LEAST = 0.05
"""The least coverage that is allowed by default."""
ENOUGH = 0.5
"""The coverage below which a warning is given."""


class AdaptedDefense(Defense):
    """A classifier with low-rank adapters on its layers, one per task: W_e = W + s·B_e A_e.

    A batch is divided equally among the stage's attacks and clean images, each of which is a task. A
    subclass chooses in :meth:`route_for` which adapters attacks are crafted on.

    Args:
        model: the classifier; its layers are replaced in place.
        rank: r, the rank of an adapter.
        scale: s.
        norms: ``task`` for separate batch statistics per task, ``batch`` for ordinary batch norm.
        adapt: ``conv`` or ``all``, see :func:`defenses.parts.lowrank.inject`. The default is ``conv`` for
            networks of convolutions, so that their results stay what they were before there was ``all``.
        coverage: the least share, in [0, 1], of the parameters or of the multiply-adds that adapters must
            reach, whichever is larger; .05 by default. Below a half of either, a warning says so.
        seed: determines every random draw.

    Raises:
        InputError: rank, scale, ``adapt`` or ``coverage`` is not allowed, or the network has no such layer;
            in ``fit``, adapters reach too little of it.
    """

    # The choice of adapters is not a weight, so a fast copy of the model would not follow it.
    follows = False

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int,
        scale: float,
        norms: Norms = "task",
        adapt: Adapt | None = None,
        coverage: float | None = None,
        seed: int = 0,
    ) -> None:
        if rank < 1:
            raise InputError(f"rank={rank} must be at least 1")
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale={scale} must be above 0 and finite")
        if adapt not in (None, *get_args(Adapt)):
            raise unknown("adapt", str(adapt), get_args(Adapt))
        if coverage is not None and not 0 <= coverage <= 1:
            raise InputError(f"coverage={coverage} must be from 0 to 1")
        model, routing = inject(model, rank=rank, scale=scale, norms=norms, adapt=adapt)
        super().__init__(model, seed=seed)
        self.rank, self.scale, self.routing = rank, scale, routing
        self.adapt, self.coverage = adapt, coverage
        self.covered: Coverage | None = None
        self.tasks: list[Task] = []

    def check_images(self, x: Tensor) -> None:
        """Measure the coverage of adapters on images ``x`` (N, C, H, W), and warn if it is low.

        Raises:
            InputError: it is below the least share, or the network changes the size of the batch.
        """
        self.covered = found = coverage_of(self.model, self.routing, x)
        least = LEAST if self.coverage is None else self.coverage
        more = "" if self.adapt == "all" else "; --set adapt=all also adapts linear and grouped layers"
        if found.most < least:
            raise InputError(
                f"{self.info.name}: adapters reach only {found}, less than {least:.3g} of either{more}; "
                "--set coverage=0 allows it"
            )
        if found.least < ENOUGH:
            # Located here, so that Python shows it once for the check before a run and for the run.
            warnings.warn(f"{self.info.name}: adapters reach only {found}{more}", stacklevel=1)

    def prepare(self, x: Tensor, plan: TrainPlan) -> None:
        """Measure the coverage of adapters on the first batch; see ``Defense.prepare``."""
        if self.covered is None:
            self.check_images(x)
        super().prepare(x, plan)

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
                if isinstance(module, AdaptedLayer):
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
            with strided(self.generator, x, len(shares), number) as rows:
                part, truth = x[rows], y[rows]
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
        """Adds the tasks, each of which has an adapter, and the coverage if it has been measured."""
        covered = {} if self.covered is None else {"covered": asdict(self.covered)}
        return {**super().spec(), "tasks": [asdict(task) for task in self.tasks], **covered}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add adapters for the tasks of ``spec``."""
        self.load_coverage(spec)
        for task in spec["tasks"][len(self.tasks) :]:
            self.add_task(Task(**task))

    def load_coverage(self, spec: dict[str, Any]) -> None:
        """Restore the measured coverage; older records do not have it."""
        self.covered = Coverage(**spec["covered"]) if "covered" in spec else None

    def _adapter(self, task: int) -> nn.ParameterList:
        """The parameters of a task's adapter."""
        found = nn.ParameterList()
        for module in adapted(self.model):
            if isinstance(module, AdaptedLayer):
                found.extend([module.down[task], module.up[task]])
        return found
