"""PGD in the linf, l2 and l1 balls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import LOSSES
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Points, Ways, gradient_ascent

KNOBS = {
    "steps": metadata.steps(50, training=7),
    "step_size": metadata.step_size(2.5),
    "restarts": metadata.restarts(),
    "random_start": Knob(True, "start at a random point of the ball"),
    "loss": Knob("ce", "loss to maximise", choices=tuple(LOSSES)),
}
"""The knobs of projected gradient descent in linf and l2."""


@register(
    AttackInfo(
        name="pgd",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="1706.06083",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs=KNOBS,
    )
)
def pgd(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Projected gradient descent, linf: x_{k+1} = Π(x_k + step_size · sign ∇ CE(f(x_k), y)), random start.

    Madry et al., arXiv:1706.06083. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="linf", **knobs)


@register(
    AttackInfo(
        name="pgd-l2",
        family="projected-gradient",
        norm="l2",
        access="white-box",
        paper="1706.06083",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs=KNOBS,
    )
)
def pgd_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Projected gradient descent, l2: x_{k+1} = Π(x_k + step_size · g/‖g‖₂), g = ∇ CE(f(x_k), y).

    Madry et al., arXiv:1706.06083. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="l2", **knobs)


L1_KNOBS = {
    **KNOBS,
    "step_size": metadata.step_size(20.0),
    "random_start": Knob(True, "start at a random point of the ball", training=False),
    "sparsity": Knob(0.2, "largest share of values that a step changes", high=1.0, open_low=True),
}
"""The knobs of projected gradient descent in l1."""

CHANGED = 1e-6
"""Smaller changes of a value count as rounding."""
SHRINK = 1.5
"""A step changes this many times fewer values than the perturbation has changed so far."""


@register(
    AttackInfo(
        name="pgd-l1",
        family="projected-gradient",
        norm="l1",
        access="white-box",
        paper="1904.13000",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs=L1_KNOBS,
    )
)
def pgd_l1(model: nn.Module, x: Tensor, y: Tensor, *, sparsity: float, **knobs: Any) -> Tensor:
    """Sparse projected gradient descent, l1: x_{k+1} = Π(x_k + step_size · s_k), g = ∇ CE(f(x_k), y).

    The sparse l1 descent of Tramèr and Boneh, arXiv:1904.13000: s_k is sign(g) on the n values where |g| is
    largest, divided by n. Three departures follow arXiv:2103.01208. Values that the box keeps from moving
    along g are skipped. Π is the exact projection onto the intersection of ball and box. n is ``sparsity`` of
    all values at the first step, then ‖x_k − x‖₀ / 1.5, but at most that share. The default step is long;
    Π shortens it. Shapes as in :class:`attacks_pool.Attack`.
    """
    ways = Ways(direction=sparse_direction(sparsity))
    return gradient_ascent(model, x, y, norm="l1", ways=ways, **knobs)


def sparse_direction(sparsity: float) -> Callable[[Tensor, Points], Tensor]:
    """Direction of l1 norm 1: sign(g) on the values of largest |g| that can move; g = 0 gives 0."""

    def direction(gradient: Tensor, points: Points) -> Tensor:
        stuck = torch.where(gradient > 0, points.x_adv >= 1, points.x_adv <= 0)
        size = gradient.abs().masked_fill(stuck, 0).flatten(1)
        most = max(1, round(sparsity * size.shape[1]))
        largest, where = size.topk(most, dim=1)
        taken = largest > 0
        if points.step:
            changed = ((points.x_adv - points.x).abs() > CHANGED).flatten(1).sum(1, keepdim=True)
            count = (changed / SHRINK).round().clamp_min(1)
            taken &= torch.arange(most, device=size.device) < count
        chosen = torch.zeros_like(size).scatter_(1, where, taken.to(size.dtype))
        chosen = chosen / chosen.sum(1, keepdim=True).clamp_min(1)
        return gradient.sign() * chosen.view_as(gradient)

    return direction
