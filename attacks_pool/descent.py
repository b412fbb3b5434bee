"""The loop that DDN and FMN share: gradient steps in a ball whose radius follows each point's success."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.boundary import Smallest
from attacks_pool.engine import input_gradient
from attacks_pool.losses import Loss


@dataclass
class Walk:
    """The points still searched. ``radius`` is each one's ball, ``crossed`` whether it has had a success."""

    index: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    radius: Tensor
    crossed: Tensor
    best: Tensor
    gradient: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    success: Tensor = field(init=False)

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


Move = Callable[[Walk, int], Tensor]
"""Sets the walk's radii and returns the next iterates, from the walk and the number of the step."""


def adaptive_descent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    move: Move,
    *,
    norm: str,
    loss: Loss,
    radius: float,
    steps: int,
    enough: float | None,
) -> Tensor:
    """x_{k+1} = move(x_k), from the clean point; ``loss`` grows towards the boundary.

    Points with a success within ``enough`` are dropped. The iterate after the last step is looked at too.

    Returns:
        The smallest successful perturbation of each point, else its last iterate.
    """
    found = Smallest(x, norm)
    ones = torch.ones(len(x), device=x.device)
    index = torch.arange(len(x), device=x.device)
    walk = Walk(index, x, y, x, ones * radius, torch.zeros_like(ones).bool(), found.size)
    for step in range(steps):
        walk.gradient, logits, walk.loss = input_gradient(model, walk.x_adv, walk.y, loss)
        walk.success = found.record(model, walk.index, walk.x_adv, walk.y, logits)
        walk.crossed = walk.crossed | walk.success
        walk.best = found.size[walk.index]
        if enough is not None:
            walk.keep(walk.best > enough)
        if not len(walk.index):
            return found.best
        walk.x_adv = move(walk, step)
    with torch.no_grad():
        found.record(model, walk.index, walk.x_adv, walk.y, model(walk.x_adv))
    return found.best


def passes(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """A forward and a backward pass a step, and a look at the last iterate."""
    return int(knobs["steps"]) + 1, int(knobs["steps"])
