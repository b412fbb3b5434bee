"""EOT-PGD: PGD along a gradient averaged over draws of a stochastic model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.attacks.pgd import KNOBS
from attacks_pool.losses import LOSSES
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Points, Ways, gradient_ascent, input_gradient

SMALLEST = 1e-30
"""Replaces a probability of 0, so that its logarithm is finite."""


def _cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:
    """The cost of PGD, with every pass repeated for each draw."""
    forwards, backwards = metadata.gradient_steps(knobs, classes)
    return forwards * int(knobs["eot_steps"]), backwards * int(knobs["eot_steps"])


@register(
    AttackInfo(
        name="eotpgd",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="1707.07397",
        reduced_precision=True,
        cost=_cost,
        knobs={
            **KNOBS,
            "eot_steps": Knob(20, "number of draws of the model to average over", training=2, low=1),
        },
    )
)
def eotpgd(model: nn.Module, x: Tensor, y: Tensor, *, loss: str, eot_steps: int, **knobs: Any) -> Tensor:
    """PGD on the expectation over draws: x_{k+1} = Π(x_k + step_size · sign mean_i ∇ loss(f_i(x_k), y)).

    Athalye et al., arXiv:1707.07397; f_i is the i-th of ``eot_steps`` draws of a stochastic model, which uses
    the global random state. A point is fooled if its mean softmax over the draws is wrong. On a deterministic
    model it equals ``pgd``. Shapes as in :class:`attacks_pool.Attack`.
    """

    def slope(model: nn.Module, points: Points, _draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        total, seen = torch.zeros_like(points.x_adv), []
        for _ in range(eot_steps):
            gradient, logits, _values = input_gradient(model, points.x_adv, points.y, LOSSES[loss])
            total += gradient / eot_steps
            seen.append(logits)
        return total, _mean(seen)

    def look(model: nn.Module, x: Tensor) -> Tensor:
        return _mean([model(x) for _ in range(eot_steps)])

    return gradient_ascent(model, x, y, norm="linf", loss=loss, ways=Ways(slope=slope, look=look), **knobs)


def _mean(logits: list[Tensor]) -> Tensor:
    """The logarithm of the mean softmax, (N, K)."""
    return torch.stack([drawn.float().softmax(1) for drawn in logits]).mean(0).clamp_min(SMALLEST).log()
