"""Fast FGSM: one signed gradient step from a random point of the ball."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import gradient_ascent


@register(
    AttackInfo(
        name="ffgsm",
        family="single-step",
        norm="linf",
        access="white-box",
        paper="2001.03994",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs={
            "step_size": Knob(
                lambda knobs: 1.25 * float(knobs["eps"]),
                "step length; default: 1.25 * eps",
                open_low=True,
                scales=True,
            ),
            "restarts": metadata.restarts(),
        },
    )
)
def ffgsm(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FGSM with a random start: x' = clip(x + U(−eps, eps)), x_adv = Π(x' + step_size · sign ∇ CE(f(x'), y)).

    Wong et al., arXiv:2001.03994, the attack of fast adversarial training. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="linf", steps=1, random_start=True, **knobs)
