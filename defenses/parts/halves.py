"""Stages of two parts, each with a whole learning-rate schedule and an optimizer state of its own."""

from __future__ import annotations

import torch

from defenses.training.plan import TrainPlan


def enter_part(
    optimizer: torch.optim.Optimizer | None, plan: TrainPlan, done: float, begin: float, end: float
) -> None:
    """Set the learning rate of a part of a stage, which has the plan's whole schedule.

    Args:
        optimizer: the stage's optimizer, if there is one.
        plan: the plan of the stage.
        done: the finished share of the stage.
        begin, end: the shares of the stage at which the part begins and ends; ``begin`` ≤ ``done``.
    """
    rate = plan.learning_rate((done - begin) / (end - begin))
    for group in optimizer.param_groups if optimizer is not None else ():
        group["lr"] = rate


def forget_steps(optimizer: torch.optim.Optimizer | None) -> None:
    """Clear the optimizer's state, such as momentum, at the border of two parts."""
    if optimizer is not None:
        optimizer.state.clear()
