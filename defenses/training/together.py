"""What the processes that train one model do together around each step; with one process, nothing."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data.distributed import DistributedSampler

from attacks_pool.calling.guard import Passes
from attacks_pool.calling.randomness import PartGenerator
from attacks_pool.errors import InputError
from defenses.training import processes
from defenses.training.processes import Part, part_beside, part_of
from defenses.training.stage import Batches
from defenses.training.trainable import Trainable

APART = 1e-3
"""Relative difference of a weight between processes that rounding does not explain."""


class Together:
    """The shares, gradients, losses and states of several processes that train one defense.

    Every optimizer's step is preceded by averaging the gradients of its parameters over all processes, so a
    defense's ``step`` need not know of it.

    Args:
        defense: the defense, alike in all processes.
        data: the batches of the stage: the same whole batches in every process, or those of a loader with a
            ``DistributedSampler``, which are shares already.
    """

    def __init__(self, defense: Trainable, data: Batches) -> None:
        self.defense, self.data = defense, data
        self.several = processes.count() > 1
        self.leads = processes.rank() == 0
        self._compared = not self.several

    def batches(self) -> Iterator[tuple[Any, Part | None]]:
        """Each batch of an epoch, or this process's part of it; None as part means the whole batch."""
        data: Any = self.data
        if not self.several:
            yield from ((batch, None) for batch in data)
        elif hasattr(data, "parts"):
            for x, y, total in data.parts(lambda total: part_of(total).slice):
                yield (x, y), part_of(total)
        elif isinstance(getattr(data, "sampler", None), DistributedSampler):
            yield from ((batch, part_beside(len(batch[0]))) for batch in data)
        else:
            for batch in data:
                self._compare(batch[1])
                part = part_of(len(batch[0]))
                yield tuple(values[part.slice] for values in batch), part

    def _compare(self, labels: Tensor) -> None:
        """Check once that all processes got the same batch.

        Raises:
            InputError: they did not.
        """
        if self._compared:
            return
        self._compared = True
        digest = hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()
        if len(set(processes.everyone(digest))) > 1:
            raise InputError(
                "the processes got different batches: give each the same ones, for example with a loader "
                "whose generator has the same seed, or shares of them with a DistributedSampler"
            )

    @contextlib.contextmanager
    def step(self, part: Part, weight: float, clip: tuple[Any, float | None]) -> Iterator[None]:
        """Within the block, optimizers step with mean gradients, and draws are those for the whole batch.

        Args:
            part: the part of the batch that this process computes.
            weight: the weight of this process in an optimizer step.
            clip: the optimizer whose mean gradients are clipped, and the largest norm.
        """
        if not self.several:
            with processes.working_on(part):
                yield
            return
        defense, buffers = self.defense, processes.Buffers(self.defense)
        ours = defense.generator
        draws = PartGenerator.of(ours, part.total, part.rows)
        defense.generator = draws

        def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            processes.average_gradients(moved, processes.step_weight())
            if optimizer is clip[0] and clip[1] is not None:
                nn.utils.clip_grad_norm_(moved, clip[1])

        hook = register_optimizer_step_pre_hook(average)
        try:
            with processes.working_on(part, weight):
                yield
        finally:
            hook.remove()
            ours.set_state(draws.get_state())
            defense.generator = ours
        buffers.average(part.weight)

    def mean_losses(self, losses: dict[str, float]) -> dict[str, float]:
        """The sums of the processes' losses, which each has weighted by its part of the batch."""
        total: dict[str, float] = {}
        for one in processes.everyone(losses):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def stopped(self, stop: bool) -> bool:
        """Whether process 0 stops; all processes also take over its random state."""
        if not self.several:
            return stop
        stopping, state = processes.first((stop, self.defense.generator.get_state()))
        self.defense.generator.set_state(state)
        return stopping

    def agree_on_precision(self) -> None:
        """Let all processes train in float32 if one of them must."""
        if self.several and len(set(processes.everyone(self.defense.reduced))) > 1:
            self.defense.unprepare()

    def collect(self, passes: Passes) -> None:
        """Add up the counts of passes in process 0, and set them to 0 in the others."""
        if not self.several:
            return
        for counted in (passes, self.defense.passes):
            every = processes.everyone((counted.forwards, counted.backwards))
            total = [sum(each) for each in zip(*every, strict=True)] if self.leads else [0, 0]
            counted.forwards, counted.backwards = total

    def check(self) -> None:
        """Check that the weights of all processes are the same but for rounding; then make them equal.

        Raises:
            InputError: they are not.
        """
        if not self.several:
            return
        apart = max(processes.everyone(processes.share_state(self.defense)))
        if apart > APART:
            raise InputError(
                f"{self.defense.info.name}: the weights of the processes have come apart by {apart:.1%}, "
                "since it changes weights by other means than an optimizer's step: train it with one process"
            )
