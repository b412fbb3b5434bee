"""The training budget that each kind of data gets unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL = {"lr": 0.1, "schedule": "one-cycle", "max_grad_norm": 1.0}
"""Small networks: rising rates and clipped gradients let a new attack or a strong distillation in gently."""

PLANS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 64, **SMALL},
    "mnist": {"epochs": 3, "batch_size": 128, **SMALL},
    "cifar10": {"epochs": 30, "batch_size": 128, "lr": 0.1},
    "imagenet": {"epochs": 30, "batch_size": 128, "lr": 0.1},
}
"""A stage's plan by the data set's row of budgets; the rest are the defaults of ``TrainPlan``."""

WARMUPS: Mapping[str, float] = {"digits": 1 / 4, "mnist": 1 / 3, "cifar10": 0.0, "imagenet": 0.0}
"""The share of a stage over which eps grows; of however many epochs the user asks for."""

PRETRAIN_EPOCHS: Mapping[str, int] = {"digits": 20, "mnist": 2, "cifar10": 30, "imagenet": 30}
"""Epochs of clean pretraining, before row 0."""
