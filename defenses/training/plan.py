"""The training plan of a stage: every setting that is independent of the defense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator
from torch import nn

from defenses.training.augment import check_kinds

MOST_EPOCHS = MOST_BATCH = 1_000_000
"""Upper limits, so that a mistyped number does not start a run that never ends."""
LATER_KEYS = (
    *("warmup", "average", "average_decay", "average_start", "label_smoothing", "grad_accumulation"),
    *("compile", "joint_epochs"),
)
"""Keys that the first records do not have."""


class TrainPlan(BaseModel):
    """The training budget of one stage.

    Attributes:
        epochs: passes over the data.
        batch_size: batch size of the benchmark's own loaders (a user's loader keeps its own).
        optimizer: ``sgd`` (with ``momentum``), ``adam`` or ``adamw``.
        max_grad_norm: gradients with a larger norm are scaled down to it; None leaves them unchanged.
        schedule: the learning rate over the stage, see :meth:`learning_rate`.
        eps_warmup: epochs over which eps of the stage's attacks grows linearly from 0 to its full value.
        augmentation: ``crop`` (random shift of up to an eighth of the image, zeros outside), ``flip`` and
            the recipes of ``defenses.training.recipes``.
        mixed_precision: train and craft in bfloat16. ``auto``: on a GPU, and on a CPU with bfloat16
            instructions if an image costs half a million multiply-adds and no convolution ends in one
            pixel, where torch's gradients can be wrong; ``on``: always; ``off``: never.
        select: ``last`` keeps the last epoch, ``val-robust`` the one most robust on validation data.
        warmup: epochs over which the learning rate grows linearly to ``lr``; ``schedule`` covers the rest.
        average: the weights that a stage ends with. ``none``: those of the last step; ``ema``: an exponential
            moving average over the steps; ``swa``: the mean over the ends of the last epochs
            (arXiv:1803.05407). For averaged weights, batch-norm statistics are measured again in a further
            epoch without optimizer steps.
        average_decay: the share of the average that a step of ``ema`` keeps.
        average_start: the share of the stage after which ``swa`` begins.
        label_smoothing: the share of each label's weight that is spread evenly over all classes, in every
            cross-entropy with labels. A defense without such a loss refuses it.
        grad_accumulation: how many batches share one optimizer step, with the mean of their gradients.
        compile: ``on`` compiles the training passes with ``torch.compile``; attacks are searched without it.
            A defense that changes its network between passes refuses it.
        joint_epochs: the epochs of the only stage of a run in the regimes joint and meta. ``all``: as many as
            a continual run has in all its stages; ``one``: ``epochs``, as one of its stages. ``fit`` trains
            ``epochs`` in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=20, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(default=128, ge=2, le=MOST_BATCH)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine", "linear", "step", "one-cycle"] = "cosine"
    eps_warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    augmentation: tuple[str, ...] = ()
    mixed_precision: Literal["auto", "on", "off"] = "auto"
    select: Literal["last", "val-robust"] = "last"
    warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    average: Literal["none", "ema", "swa"] = "none"
    average_decay: float = Field(default=0.995, ge=0, lt=1)
    average_start: float = Field(default=0.75, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    grad_accumulation: int = Field(default=1, ge=1, le=MOST_BATCH)
    compile: Literal["on", "off"] = "off"
    joint_epochs: Literal["all", "one"] = "all"

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[TrainPlan], dict[str, Any]]) -> dict[str, Any]:
        """Leave out later keys that have their defaults, so that a plan has one form in all records."""
        return {
            key: value
            for key, value in write(self).items()
            if key not in LATER_KEYS or value != type(self).model_fields[key].default
        }

    @field_validator("augmentation", mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        """Parse ``crop+flip``, ``crop,flip`` and ``none`` from the command line."""
        if isinstance(given, str):
            words = given.replace("+", ",").split(",")
            return tuple(word.strip() for word in words if word.strip() not in ("", "none"))
        return given

    @field_validator("augmentation")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        check_kinds(given)
        return given

    @field_validator("max_grad_norm", mode="before")
    @classmethod
    def _none_from_text(cls, given: object) -> object:
        """Parse ``none`` from the command line."""
        return None if given == "none" else given

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> Self:
        if self.eps_warmup > self.epochs:
            late = f"longer than the {self.epochs} epochs of the stage: eps would never be reached"
            raise ValueError(f"eps_warmup={self.eps_warmup:g} is {late}")
        return self

    @model_validator(mode="after")
    def _rate_warms_up(self) -> Self:
        if self.warmup and self.schedule == "one-cycle":
            raise ValueError(
                f"warmup={self.warmup:g} does not go with schedule=one-cycle, which warms up by itself: "
                "set schedule=cosine, linear, step or constant"
            )
        if self.warmup and self.warmup >= self.epochs > 0:
            raise ValueError(
                f"warmup={self.warmup:g} must be shorter than the {self.epochs} epochs of the stage"
            )
        return self

    @model_validator(mode="after")
    def _averages(self) -> Self:
        for key, kind in (("average_decay", "ema"), ("average_start", "swa")):
            if self.average != kind and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key}={getattr(self, key):g} has no effect with average={self.average}: set "
                    f"average={kind}"
                )
        if self.average != "none" and self.select != "last":
            raise ValueError(
                f"average={self.average} and select={self.select} both choose the weights that a stage ends "
                "with: set average=none or select=last"
            )
        return self

    def learning_rate(self, done: float) -> float:
        """The learning rate after the share ``done`` in [0, 1) of the stage.

        cosine: lr·(1 + cos(π·done))/2; linear: lr·(1 − done); step: lr, then lr/10 from one half on and
        lr/100 from three quarters on; one-cycle: linearly up over the first 40 %, then down to 0. During
        ``warmup`` the rate grows from 0 to lr, and ``done`` is counted from its end.
        """
        warm = self.warmup / self.epochs if self.warmup else 0.0
        if done < warm:
            return self.lr * max(done / warm, 0.01)
        done = (done - warm) / (1 - warm) if warm else done
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "step":
            return self.lr * (0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0)
        if self.schedule == "one-cycle":
            return self.lr * (max(done, 0.01) / 0.4 if done < 0.4 else (1 - done) / 0.6)
        return self.lr

    def warmth(self, epochs_done: float) -> float:
        """The factor on eps of the attacks after ``epochs_done`` epochs, above 0 and at most 1."""
        if epochs_done >= self.eps_warmup:
            return 1.0
        return max(epochs_done / self.eps_warmup, 1e-3)

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a new optimizer over ``parameters``."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
            )
        maker = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return maker(parameters, lr=self.lr, weight_decay=self.weight_decay)


class PretrainPlan(TrainPlan):
    """The plan of clean pretraining; with 0 ``epochs`` the classifier stays as it starts."""

    epochs: int = Field(default=20, ge=0, le=MOST_EPOCHS)
