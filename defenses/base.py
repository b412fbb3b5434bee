"""What a defense is: a classifier that trains itself against attacks, stage by stage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack, check_batch
from attacks_pool.engine import wrong
from attacks_pool.errors import InputError
from attacks_pool.guard import buffers_kept
from attacks_pool.passes import Passes, count_passes
from attacks_pool.randomness import isolated_randomness, key_seed, keyed_generator
from defenses.augment import augment
from defenses.metadata import DefenseInfo
from defenses.parameters import parameters_of
from defenses.plan import TrainPlan

Batches = Iterable[tuple[Tensor, Tensor]]


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number; says at which stage, epoch and step."""


@dataclass(frozen=True)
class Stage:
    """One stage: its number from 1, the attacks to train against (training knobs), the plan. No test data."""

    index: int
    attacks: tuple[Attack, ...]
    plan: TrainPlan


@dataclass(frozen=True)
class Progress:
    """Where training stands after a batch; ``batches`` is 0 when the loader has no length."""

    stage: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: dict[str, float]


class Defense(nn.Module):
    """A classifier with a way to train it; ``forward`` gives logits, so any attack can be pointed at it.

    Subclasses name themselves in ``info`` and usually write only :meth:`loss`. Constructor parameters are
    keyword arguments kept in attributes of the same names.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K); any normalisation is inside it.
        seed: with the stage and the epoch it determines every random draw of training.
    """

    info: ClassVar[DefenseInfo]

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.settings: dict[str, Any] = {}
        self.stages = 0
        self.passes = Passes()
        self.generator = keyed_generator("defense", seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.model(x)
        # Autocast leaves them in bfloat16, whose softmax is too coarse for a loss or a margin.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def fit(
        self,
        data: Batches,
        attacks: Sequence[Attack],
        *,
        plan: TrainPlan | None = None,
        progress: Callable[[Progress], None] | None = None,
        validation: Batches | None = None,
    ) -> list[dict[str, float]]:
        """Train one stage on clean batches against ``attacks``; the defense is left in eval mode.

        Args:
            data: any re-iterable of ``(x, y)`` batches, such as a DataLoader; ``x`` in [0, 1].
            attacks: one attack in the continual regime, several in joint and meta, none for plain training.
            plan: the training budget, :class:`TrainPlan` by default.
            progress: called after each batch.
            validation: held-out batches, needed by ``select="val-robust"`` alone.

        Returns:
            The mean losses of each epoch.

        Raises:
            InputError: data that are empty or cannot be read twice, images out of range, validation missing,
                several attacks for a defense that runs in the continual regime alone.
            TrainingDivergedError: the loss is no longer finite.
        """
        plan = plan or TrainPlan()
        self._check_attacks(attacks)
        _check_data(data, plan, validation)
        stage = Stage(self.stages + 1, tuple(attack.for_training() for attack in attacks), plan)
        self.begin(stage)
        optimizer = self.configure_optimizer(plan)
        best = (
            _Best(self, stage, validation) if plan.select == "val-robust" and validation is not None else None
        )
        history = []
        with count_passes(self) as passes:
            for epoch in range(plan.epochs):
                history.append(self._epoch(data, stage, epoch, optimizer, progress))
                if best is not None:
                    best.consider()
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        if best is not None:
            best.restore()
        self.end(stage)
        self.stages += 1
        self.eval()
        return history

    def begin(self, stage: Stage) -> None:
        """Before a stage trains; a method that grows may add modules here."""

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer | None:
        """A fresh optimizer over the trainable parameters."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return plan.make_optimizer(parameters) if parameters else None

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """One batch: loss, backward, step. Returns the loss and its terms."""
        with self.precision(stage.plan):
            terms = self.loss(x, y, stage)
        if isinstance(terms, Tensor):
            terms = {"loss": terms}
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            if stage.plan.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters(), stage.plan.max_grad_norm)
            optimizer.step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor | dict[str, Tensor]:
        """The scalar to minimise on a clean batch, or a dict with it under ``loss`` beside its terms."""
        raise NotImplementedError(f"{type(self).__name__} writes neither loss nor step")

    def end(self, stage: Stage) -> None:
        """After a stage has trained."""

    def craft(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial points against the present defense, in eval mode; batch-norm statistics don't move."""
        with buffers_kept(self):
            return attack(self, x, y, generator=self.generator)

    def view(self, attack: Attack | None) -> nn.Module:  # noqa: ARG002 - target-aware defenses use it
        """The module that evaluation and strangers attack; target-aware defenses choose it by the attack."""
        return self

    def spec(self) -> dict[str, Any]:
        """JSON that rebuilds the structure before weights are loaded."""
        own = {name: getattr(self, name) for name in parameters_of(type(self)) if hasattr(self, name)}
        return {"defense": self.info.name, "parameters": {**own, **self.settings}}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Rebuild the structure that ``spec`` describes; a method that grows adds its modules here."""

    def training_state(self) -> dict[str, Any]:
        """What resuming needs beside the weights."""
        return {
            "stages": self.stages,
            "generator": self.generator.get_state(),
            "forwards": self.passes.forwards,
            "backwards": self.passes.backwards,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`training_state` gave."""
        self.stages = int(state["stages"])
        self.generator.set_state(state["generator"])
        self.passes = Passes(int(state["forwards"]), int(state["backwards"]))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def precision(self, plan: TrainPlan) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 autocast where the plan asks for it: ``auto`` on a GPU, ``on`` everywhere."""
        kind = self.device.type
        if plan.mixed_precision == "on" or (plan.mixed_precision == "auto" and kind == "cuda"):
            return torch.autocast(kind, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _check_attacks(self, attacks: Sequence[Attack]) -> None:
        if len(attacks) > 1 and set(self.info.regimes) == {"continual"}:
            raise InputError(
                f"{self.info.name} meets one attack a stage, not {len(attacks)}: call fit once for each"
            )

    def _epoch(
        self,
        data: Batches,
        stage: Stage,
        epoch: int,
        optimizer: torch.optim.Optimizer | None,
        progress: Callable[[Progress], None] | None,
    ) -> dict[str, float]:
        plan, device = stage.plan, self.device
        # Keyed, not carried on: an epoch draws the same whether or not the ones before it ran just now.
        self.generator = keyed_generator("defense", self.seed, stage.index, epoch)
        if hasattr(data, "set_epoch"):
            data.set_epoch((stage.index - 1) * 100_000 + epoch)
        batches = len(data) if isinstance(data, Sized) else 0
        sums: dict[str, float] = {}
        count = 0
        for batch, (images, labels) in enumerate(data):
            x, y = check_batch(images.to(device), labels.to(device))
            share = batch / batches if batches else 0.0
            self._set_rate(optimizer, plan.learning_rate((epoch + share) / plan.epochs))
            warmth = plan.warmth(epoch + share)
            now = stage
            if warmth < 1:
                now = replace(stage, attacks=tuple(attack.scaled(warmth) for attack in stage.attacks))
            if plan.augmentation:
                x = augment(x, plan.augmentation, self.generator)
            self.train()
            # Dropout and the like draw from the global state, which is the caller's.
            with isolated_randomness(key_seed("step", self.seed, stage.index, epoch, batch), device):
                losses = self.step(x, y, now, optimizer)
            if not all(math.isfinite(value) for value in losses.values()):
                raise TrainingDivergedError(
                    f"{self.info.name}: the loss is not a number at stage {stage.index}, epoch {epoch + 1}, "
                    f"step {batch + 1}: {losses}"
                )
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            if progress is not None:
                progress(Progress(stage.index, epoch + 1, plan.epochs, batch + 1, batches, losses))
        if not count:
            raise InputError("data has no batches")
        return {name: value / count for name, value in sums.items()}

    @staticmethod
    def _set_rate(optimizer: torch.optim.Optimizer | None, rate: float) -> None:
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = rate


class _Best:
    """Remembers the epoch that stands up best to the stage's attacks on validation data."""

    def __init__(self, defense: Defense, stage: Stage, validation: Batches) -> None:
        self.defense, self.stage, self.validation = defense, stage, validation
        self.accuracy = -1.0
        self.state: dict[str, Tensor] = {}

    def consider(self) -> None:
        accuracy = self._robust_accuracy()
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.state = {name: value.detach().clone() for name, value in self.defense.state_dict().items()}

    def restore(self) -> None:
        self.defense.load_state_dict(self.state)

    def _robust_accuracy(self) -> float:
        right = total = 0
        self.defense.eval()
        for batch, (images, labels) in enumerate(self.validation):
            x, y = images.to(self.defense.device), labels.to(self.defense.device)
            survived = torch.ones(len(x), dtype=torch.bool, device=x.device)
            with torch.no_grad():
                survived &= ~wrong(self.defense(x), y)
            for number, attack in enumerate(self.stage.attacks):
                draws = keyed_generator("validation", self.defense.seed, self.stage.index, batch, number)
                x_adv = attack(self.defense, x, y, generator=draws)
                with torch.no_grad():
                    survived &= ~wrong(self.defense(x_adv), y)
            right, total = right + int(survived.sum()), total + len(x)
        return right / max(total, 1)


def _check_data(data: Batches, plan: TrainPlan, validation: Batches | None) -> None:
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
