"""The training loop of one stage: epochs and batches, snapshots and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attacks_pool.calling.batches import check_batch
from attacks_pool.calling.guard import Passes, count_passes
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from attacks_pool.errors import InputError
from defenses.training.accumulate import Accumulator
from defenses.training.augment import augment
from defenses.training.average import Average, has_statistics, measured_anew
from defenses.training.optimizer_state import load_optimizer, optimizer_state
from defenses.training.packing import detached, map_tensors
from defenses.training.plan import TrainPlan
from defenses.training.processes import Part, StoppedElsewhereError, rank
from defenses.training.selection import Best
from defenses.training.snapshot import DefenseState, Snapshot
from defenses.training.stage import Batches, Progress, Stage, TrainingDivergedError
from defenses.training.together import Together
from defenses.training.trainable import Trainable

Batch = tuple[Tensor, Tensor, Part]


class Training:
    """The training loop that ``Defense.fit`` runs between ``begin`` and ``end``.

    Args:
        defense: the defense, ready for the stage.
        data: re-iterable clean batches.
        stage: the stage.
        progress: called after each batch; an exception from it stops training, after a snapshot.
        validation: held-out batches for ``select="val-robust"``.
        checkpoint: called with a snapshot after each epoch.

    With several processes, each computes its part of every batch. Process 0 alone calls ``progress`` and
    ``checkpoint``, and if ``progress`` raises, the others raise ``StoppedElsewhereError``.
    """

    def __init__(
        self,
        defense: Trainable,
        data: Batches,
        stage: Stage,
        *,
        progress: Callable[[Progress], None] | None = None,
        validation: Batches | None = None,
        checkpoint: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self.defense, self.data, self.stage = defense, data, stage
        self.progress, self.checkpoint = progress, checkpoint
        self.optimizer = defense.configure_optimizer(stage.plan)
        chosen = stage.plan.select == "val-robust" and validation is not None
        self.best = Best(defense, stage, validation) if chosen and validation is not None else None
        self.average = None if stage.plan.average == "none" else Average(defense, stage.plan)
        self.history: list[dict[str, float]] = []
        self.epoch = self.batch = 0
        self.prepared = False
        self.sums: dict[str, float] = {}
        self.passes = Passes()
        self.together = Together(defense, data)

    def resume(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``, whose defense state must have been restored already.

        Raises:
            InputError: the snapshot belongs to another stage, plan or optimizer.
        """
        plan, index = self.stage.plan, self.stage.index
        if snapshot.stage != index or snapshot.epoch > plan.epochs:
            raise InputError(
                f"this snapshot is of stage {snapshot.stage}, epoch {snapshot.epoch + 1}: "
                f"not of stage {index} of {plan.epochs} epochs"
            )
        if (self.optimizer is None) != (snapshot.optimizer is None):
            raise InputError("this snapshot was taken with another optimizer")
        if self.optimizer is not None and snapshot.optimizer is not None:
            load_optimizer(self.optimizer, self.defense, snapshot.optimizer)
        if self.best is not None and snapshot.best is not None:
            self.best.accuracy = snapshot.best["accuracy"]
            self.best.state = map_tensors(snapshot.best["weights"], detached)
        if self.average is not None and snapshot.average is not None:
            self.average.load(snapshot.average)
        self.history = [dict(losses) for losses in snapshot.history]
        self.epoch, self.batch, self.sums = snapshot.epoch, snapshot.batch, dict(snapshot.sums)
        self.passes = Passes(*snapshot.passes)

    def run(self) -> list[dict[str, float]]:
        """Train the remaining epochs and return the mean losses of each epoch."""
        with count_passes(self.defense) as passes:
            if self.together.leads:
                passes.forwards, passes.backwards = self.passes.forwards, self.passes.backwards
            self.passes = passes
            try:
                while self.epoch < self.stage.plan.epochs:
                    self._epoch()
                if self.average is not None:
                    self._take_average(self.average)
            finally:
                self.defense.unprepare()
        self.together.collect(passes)
        self.defense.passes.forwards += passes.forwards
        self.defense.passes.backwards += passes.backwards
        if self.best is not None:
            self.best.restore()
        return self.history

    def snapshot(self) -> Snapshot:
        """The current state of training, as copies."""
        best, optimizer = self.best, self.optimizer
        return Snapshot(
            state=DefenseState.of(self.defense),
            stage=self.stage.index,
            epoch=self.epoch,
            batch=self.batch,
            optimizer=None if optimizer is None else optimizer_state(optimizer, self.defense),
            history=[dict(losses) for losses in self.history],
            sums=dict(self.sums),
            passes=(self.passes.forwards, self.passes.backwards),
            best=None if best is None else {"accuracy": best.accuracy, "weights": dict(best.state)},
            average=None if self.average is None else self.average.state(),
        )

    def _save(self) -> None:
        self.together.collect(self.passes)
        # Training cannot resume from weights that are not finite, so the previous snapshot stays the last.
        if (
            self.together.leads
            and self.checkpoint is not None
            and all(bool(parameter.isfinite().all()) for parameter in self.defense.parameters())
        ):
            self.checkpoint(self.snapshot())

    def _epoch(self) -> None:
        """Train the rest of the current epoch."""
        if not self.batch:
            # Seeded anew, so that an epoch's draws are the same after resuming as without a break.
            self._seed()
        batches = len(self.data) if isinstance(self.data, Sized) else 0
        for number, group in self._groups(self.batch):
            self._group(number, batches, group)
        if not self.batch:
            raise InputError("data has no batches")
        self.history.append({name: value / self.batch for name, value in self.sums.items()})
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
        if self.best is not None:
            self.best.consider()
        if self.average is not None:
            self.average.epoch(self.epoch)
        self.together.check()
        self._save()

    def _seed(self) -> None:
        """Set the random draws of the defense to those of the current epoch."""
        defense = self.defense
        defense.generator = keyed_generator("defense", defense.seed, self.stage.index, self.epoch)

    def _groups(self, start: int) -> Iterator[tuple[int, list[Batch]]]:
        """The batches from number ``start`` on that share a step, with the number of the first."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch((self.stage.index - 1) * 100_000 + self.epoch)
        group: list[Batch] = []
        number = -1
        for number, (batch, part) in enumerate(self.together.batches()):
            if number >= start:
                images, labels = pair_of(batch)
                group.append((images, labels, part or Part(0, len(images), len(images))))
            if len(group) == self.stage.plan.grad_accumulation:
                yield number + 1 - len(group), group
                group = []
        if group:
            yield number + 1 - len(group), group

    def _group(self, number: int, batches: int, group: list[Batch]) -> None:
        """Take one optimizer step with batches ``number``, ``number`` + 1, …"""
        plan = self.stage.plan
        now = self._moment(number, batches)
        several: Accumulator | None = None
        clip = plan.max_grad_norm
        joined = len(group) > 1 and self.optimizer is not None
        if joined or self.together.several:
            # The mean gradient is clipped, so the defense must not clip that of a batch or of its part.
            now = replace(now, plan=plan.model_copy(update={"max_grad_norm": None}))
        if joined and self.optimizer is not None:
            sizes = [len(labels) for _, labels, _ in group]
            several = Accumulator(self.optimizer, sizes, None if self.together.several else clip)
        # The share of this process in the images of the step.
        images = sum(part.total for *_, part in group)
        weight = sum(part.weight * part.total for *_, part in group) / max(images, 1)
        losses: dict[str, float] = {}
        for place, batch in enumerate(group):
            if several is not None:
                several.begin(place)
            with self.together.step(batch[2], weight, (self.optimizer, clip)):
                found = self._batch(number + place, now, batch, several or self.optimizer)
                if several is not None and place + 1 == len(group):
                    several.finish()
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + batch[2].weight * value
        losses = self._checked(self.together.mean_losses(losses), number)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.average is not None:
            self.average.step()
        self.batch = number + len(group)
        means = {name: value / len(group) for name, value in losses.items()}
        self._report(Progress(self.stage.index, self.epoch + 1, plan.epochs, self.batch, batches, means))

    def _report(self, progress: Progress) -> None:
        """Call the callback, which may stop training here, between two steps."""
        raised: BaseException | None = None
        if self.progress is not None and self.together.leads:
            try:
                self.progress(progress)
            except BaseException as error:
                raised = error
        if self.together.stopped(raised is not None):
            self._save()
            raise raised or StoppedElsewhereError("process 0 stopped the training")

    def _checked(self, losses: dict[str, float], number: int) -> dict[str, float]:
        """The losses of batch ``number``, which must be finite."""
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingDivergedError(
                f"{self.defense.info.name}: the loss is not a number at stage {self.stage.index}, "
                f"epoch {self.epoch + 1}, step {number + 1}: {losses}"
            )
        return losses

    def _moment(self, number: int, batches: int) -> Stage:
        """The stage as it is at a batch, with its learning rate set and the eps of its attacks."""
        plan, share = self.stage.plan, number / batches if batches else 0.0
        now = replace(self.stage, done=(self.epoch + share) / plan.epochs)
        _set_rate(self.optimizer, plan.learning_rate(now.done))
        warmth = plan.warmth(self.epoch + share)
        if warmth < 1:
            now = replace(now, attacks=tuple(attack.scaled(warmth) for attack in now.attacks))
        return now

    def _batch(
        self,
        number: int,
        now: Stage,
        batch: Batch,
        optimizer: torch.optim.Optimizer | None,
    ) -> dict[str, float]:
        """Let the defense train on one batch; return its losses."""
        defense, plan = self.defense, self.stage.plan
        device = defense.device
        images, labels, _ = batch
        x, y = check_batch(images.to(device), labels.to(device))
        if not len(x):
            raise InputError(f"batch {number + 1} of the data is empty")
        if not self.prepared:
            defense.prepare(x, plan)
            self.together.agree_on_precision()
            self.prepared = True
        if plan.augmentation:
            x = augment(x, plan.augmentation, defense.generator)
        defense.train()
        # Dropout and similar layers draw from the global random state, which belongs to the caller.
        key = [] if self.together.leads else [f"process {rank()}"]
        with isolated_randomness(key_seed("step", defense.seed, now.index, self.epoch, number, *key), device):
            return defense.step(x, y, now, optimizer)

    def _take_average(self, average: Average) -> None:
        """End the stage with the averaged weights; measure batch-norm statistics anew for them.

        The statistics come from one more epoch of the defense's own steps without an optimizer, so that
        they are those of the points that it trains on.
        """
        average.take_over()
        self.defense.train()
        if not has_statistics(self.defense):
            return
        # Measuring statistics uses another factor in every step, which would be compiled every time.
        self.defense.compiled = ()
        now = replace(self.stage, done=math.nextafter(1, 0))
        self._seed()
        with measured_anew(self.defense):
            for number, group in self._groups(0):
                for place, batch in enumerate(group):
                    with self.together.step(batch[2], batch[2].weight, (None, None)):
                        losses = self._batch(number + place, now, batch, None)
                    self._checked(self.together.mean_losses(losses), number + place)


def pair_of(batch: Any) -> tuple[Tensor, Tensor]:
    """Return images and labels of a batch.

    Raises:
        InputError: the batch is not a pair of tensors.
    """
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch):
        return batch[0], batch[1]
    found = ", ".join(type(one).__name__ for one in batch) if isinstance(batch, Sequence) else ""
    given = f"{type(batch).__name__} ({found})" if found else type(batch).__name__
    raise InputError(f"a batch must be two tensors, images and labels, not {given}")


def check_data(data: Batches, plan: TrainPlan, validation: Batches | None) -> None:
    """Reject data that a stage cannot be trained on.

    Raises:
        InputError: batches are empty or cannot be read twice, or validation batches are missing.
    """
    if plan.select == "val-robust" and validation is None:
        raise InputError("select='val-robust' needs validation batches: fit(..., validation=...)")
    for name, batches in (("data", data), ("validation", validation)):
        # Not iter(batches): that would draw a seed for a DataLoader, or start its workers.
        if isinstance(batches, Iterator):
            raise InputError(
                f"{name} is an iterator, used up after one epoch: give a DataLoader or a list of batches"
            )
        if isinstance(batches, Sized) and len(batches) == 0:
            raise InputError(f"{name} has no batches")


def _set_rate(optimizer: torch.optim.Optimizer | None, rate: float) -> None:
    for group in optimizer.param_groups if optimizer is not None else ():
        group["lr"] = rate
