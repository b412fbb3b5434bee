"""VMI-FGSM: momentum with gradients corrected by their variance around the point."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attacks.nim import KNOBS
from attacks_pool.calling.randomness import uniform
from attacks_pool.losses import cross_entropy
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Points, Ways, gradient_ascent, input_gradient


def _cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost: one gradient per step, plus one per neighbour in all steps except the last."""
    passes = int(knobs["steps"]) + (int(knobs["steps"]) - 1) * int(knobs["neighbours"])
    return passes, passes


@register(
    AttackInfo(
        name="vmi",
        family="momentum",
        norm="linf",
        access="white-box",
        paper="2103.15571",
        reduced_precision=True,
        cost=_cost,
        knobs={
            **KNOBS,
            "neighbours": Knob(
                5, "number of points around each iterate to average gradients over", training=2, low=1
            ),
            "beta": Knob(1.5, "radius of the neighbourhood, in multiples of eps", open_low=True),
        },
    )
)
def vmi(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    neighbours: int,
    beta: float,
    **knobs: Any,
) -> Tensor:
    """Variance tuning: v_{k+1} = decay · v_k + (g_k + V_k)/‖g_k + V_k‖₁, a signed step along v_{k+1}.

    Wang and He, arXiv:2103.15571 (VMI-FGSM): g_k = ∇ CE(f(x_k), y), V_0 = 0 and V_{k+1} = mean_i
    ∇ CE(f(x_k + r_i), y) − g_k with r_i ~ U(−beta · eps, beta · eps). Neighbours may lie outside ball and
    box. Shapes as in :class:`attacks_pool.Attack`.
    """
    variance = torch.zeros_like(x)

    def slope(model: nn.Module, points: Points, draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        gradient, logits, _values = input_gradient(model, points.x_adv, points.y, cross_entropy)
        tuned = gradient + variance[points.index]
        if points.step + 1 < steps:
            around = torch.zeros_like(gradient)
            for _ in range(neighbours):
                near = points.x_adv + uniform(x, draws, -beta * eps, beta * eps)[points.index]
                around += input_gradient(model, near, points.y, cross_entropy)[0] / neighbours
            variance[points.index] = around - gradient
        return tuned, logits

    return gradient_ascent(model, x, y, norm="linf", eps=eps, steps=steps, ways=Ways(slope=slope), **knobs)
