"""MIM: iterated steps along a gradient with momentum."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import gradient_ascent


@register(
    AttackInfo(
        name="mim",
        family="momentum",
        norm="linf",
        access="white-box",
        paper="1710.06081",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs={
            "steps": metadata.steps(20, training=7),
            "step_size": metadata.step_size(2.0),
            "decay": Knob(1.0, "weight of the previous step's velocity"),
        },
    )
)
def mim(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Momentum iterative method: v_{k+1} = decay · v_k + g/‖g‖₁, x_{k+1} = Π(x_k + step_size · sign v_{k+1}).

    Dong et al., arXiv:1710.06081 (MI-FGSM). Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="linf", **knobs)
