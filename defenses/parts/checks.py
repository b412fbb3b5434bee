"""Refusals that several defenses share, each one clear line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from attacks_pool.attack import Attack
from attacks_pool.errors import InputError


def not_negative(**values: float) -> None:
    """Refuse parameters below 0 or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} must be at least 0 and finite")


def above_zero(**values: float) -> None:
    """Refuse parameters that are 0 or below, or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value} must be above 0 and finite")


def at_least_one(**values: int | None) -> None:
    """Refuse numbers of steps and the like below 1; None is none given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")


def needs_float32(defense: str, model: nn.Module) -> None:
    """Refuse a classifier of other weights, beside which networks of the defense's own would not run."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype)[6:]
            raise InputError(
                f"{defense} needs a classifier of float32 weights, not {kind}: give model.float()"
            )


def needs_attack(defense: str, attacks: Sequence[Attack]) -> None:
    """Refuse a stage without an attack."""
    if not attacks:
        raise InputError(f"{defense} needs an attack to train against")
