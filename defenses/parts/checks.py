"""Checks that several defenses share; each raises an error of one line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from attacks_pool.attack import Attack
from attacks_pool.errors import InputError


def not_negative(**values: float) -> None:
    """Reject parameters that are negative or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} must be at least 0 and finite")


def above_zero(**values: float) -> None:
    """Reject parameters that are not positive or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value} must be above 0 and finite")


def at_least_one(**values: int | None) -> None:
    """Reject counts below 1; None stands for a value that was not given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")


def needs_float32(defense: str, model: nn.Module) -> None:
    """Reject a classifier with 16-bit weights, since the defense's own networks do not train with them."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype)[6:]
            raise InputError(
                f"{defense} needs a classifier of float32 weights, not {kind}: give model.float()"
            )


def because(reason: str, *names: str) -> dict[str, str]:
    """``names`` with the same reason, as ``Defense.idle`` returns them."""
    return dict.fromkeys(names, reason)


def single_stage(stages: Sequence[Sequence[Attack]], *names: str) -> dict[str, str]:
    """``names`` that act from the second stage on, if there is only one."""
    if len(stages) > 1:
        return {}
    return because("since it acts from the second stage on, and there is only one", *names)


def nothing_to_mix(stages: Sequence[Sequence[Attack]], most: int = 1) -> dict[str, str]:
    """``mix``, if no stage has more than ``most`` attacks."""
    if any(len(attacks) > most for attacks in stages):
        return {}
    return because("since it mixes the attacks of a stage, and no stage trains with several at once", "mix")
