"""The training budget that each kind of data gets unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLANS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 64, "lr": 0.1, "eps_warmup": 5.0},
    "mnist": {"epochs": 3, "batch_size": 128, "lr": 0.05, "eps_warmup": 2.0},
    "cifar10": {"epochs": 30, "batch_size": 128, "lr": 0.1},
    "imagenet": {"epochs": 30, "batch_size": 128, "lr": 0.1},
}
"""A stage's plan by the data set's row of budgets; the rest are the defaults of ``TrainPlan``."""

PRETRAIN_EPOCHS: Mapping[str, int] = {"digits": 20, "mnist": 2, "cifar10": 30, "imagenet": 30}
"""Epochs of clean pretraining, before row 0."""
