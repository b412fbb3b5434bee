"""BIM: FGSM iterated with small steps."""

from typing import Any

from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.metadata import AttackInfo
from attacks_pool.registry import register
from attacks_pool.search.ascent import gradient_ascent


@register(
    AttackInfo(
        name="bim",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="1607.02533",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs={"steps": metadata.steps(20, training=7), "step_size": metadata.step_size(2.0)},
    )
)
def bim(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Basic iterative method: signed gradient steps from the clean point, clipped to the ball.

    Kurakin et al., arXiv:1607.02533. The paper fixes the step at one grey level and derives the number of
    steps from eps; here both are knobs. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(model, x, y, norm="linf", **knobs)
