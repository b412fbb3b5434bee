"""NI-FGSM: momentum with a look-ahead gradient (Nesterov)."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import cross_entropy
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Points, Ways, gradient_ascent, input_gradient

KNOBS = {
    "steps": metadata.steps(20, training=7),
    "step_size": metadata.step_size(2.0),
    "decay": Knob(1.0, "weight of the previous step's velocity"),
}
"""The knobs of the momentum attacks."""


@register(
    AttackInfo(
        name="nim",
        family="momentum",
        norm="linf",
        access="white-box",
        paper="1908.06281",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs=KNOBS,
    )
)
def nim(
    model: nn.Module, x: Tensor, y: Tensor, *, step_size: float, decay: float, steps: int, **knobs: Any
) -> Tensor:
    """Nesterov iterative method: the gradient of MIM, taken at x_k + step_size · decay · v_k.

    Lin et al., arXiv:1908.06281 (NI-FGSM). The paper divides gradients by their l1 norm, so that looking
    ahead hardly moves any pixel. Here, as in the paper's code, v_k is the velocity of gradients divided by
    their mean absolute value. The look-ahead point may lie outside the ball. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    reach = step_size * decay * x[0].numel()

    def slope(model: nn.Module, points: Points, _draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        ahead = points.x_adv + reach * points.velocity
        gradient, logits, _values = input_gradient(model, ahead, points.y, cross_entropy)
        return gradient, None if points.step else logits

    return gradient_ascent(
        model,
        x,
        y,
        norm="linf",
        step_size=step_size,
        decay=decay,
        steps=steps,
        ways=Ways(slope=slope),
        **knobs,
    )
