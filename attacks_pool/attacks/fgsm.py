"""FGSM: one signed gradient step."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.metadata import AttackInfo
from attacks_pool.registry import register
from attacks_pool.search.ascent import gradient_ascent


@register(
    AttackInfo(
        name="fgsm",
        family="single-step",
        norm="linf",
        access="white-box",
        paper="1412.6572",
        reduced_precision=True,
        cost=metadata.gradient_steps,
    )
)
def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **knobs: Any) -> Tensor:
    """Fast gradient sign method: x_adv = clip(x + eps · sign ∇_x CE(f(x), y)).

    Goodfellow et al., arXiv:1412.6572. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="linf", eps=eps, steps=1, step_size=eps, **knobs)
