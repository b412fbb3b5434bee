"""R+FGSM: a random signed step, then one signed gradient step."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import normal
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Ways, gradient_ascent


@register(
    AttackInfo(
        name="rfgsm",
        family="single-step",
        norm="linf",
        access="white-box",
        paper="1705.07204",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs={
            "random_share": Knob(0.5, "share of eps used by the random step", high=1.0),
            "restarts": metadata.restarts(),
        },
    )
)
def rfgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, random_share: float, **knobs: Any) -> Tensor:
    """R+FGSM: x' = clip(x + α · sign N(0, I)), x_adv = clip(x' + (eps − α) · sign ∇ CE(f(x'), y)).

    Tramèr et al., arXiv:1705.07204, with α = random_share · eps. Shapes as in :class:`attacks_pool.Attack`.
    """
    alpha = random_share * eps

    def start(x: Tensor, draws: torch.Generator) -> Tensor:
        return (x + alpha * normal(x, draws).sign()).clamp(0, 1)

    return gradient_ascent(
        model, x, y, norm="linf", eps=eps, steps=1, step_size=eps - alpha, ways=Ways(start=start), **knobs
    )
