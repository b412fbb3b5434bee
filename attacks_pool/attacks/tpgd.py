"""TPGD: PGD away from the clean prediction."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import metadata
from attacks_pool.calling.randomness import normal
from attacks_pool.losses import log_probabilities
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.norms import project
from attacks_pool.registry import register
from attacks_pool.search.ascent import Ways, gradient_ascent


def _cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:
    """The cost of the gradient steps, plus one pass for the clean prediction."""
    forwards, backwards = metadata.gradient_steps(knobs, classes)
    return forwards + 1, backwards


@register(
    AttackInfo(
        name="tpgd",
        family="projected-gradient",
        norm="linf",
        access="white-box",
        paper="1901.08573",
        reduced_precision=True,
        cost=_cost,
        knobs={
            "steps": metadata.steps(50, training=10),
            "step_size": metadata.step_size(2.5),
            "restarts": metadata.restarts(),
            "start_std": Knob(0.001, "standard deviation of the noise at the start", open_low=True),
        },
    )
)
def tpgd(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, start_std: float, **knobs: Any) -> Tensor:
    """PGD of TRADES: x_{k+1} = Π(x_k + step_size · sign ∇ KL(f(x) ‖ f(x_k))), from x + start_std · N(0, I).

    Zhang et al., arXiv:1901.08573. The divergence has zero gradient at x itself, hence the noise. Labels are
    used only to determine which points are fooled. Shapes as in :class:`attacks_pool.Attack`.
    """
    with torch.no_grad():
        clean = log_probabilities(model(x).float())

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        found = log_probabilities(logits.float())
        return F.kl_div(found, clean[rows], log_target=True, reduction="none").sum(1)

    def start(x: Tensor, draws: torch.Generator) -> Tensor:
        return project(x + start_std * normal(x, draws), x, eps, "linf")

    return gradient_ascent(
        model, x, y, norm="linf", eps=eps, ways=Ways(objective=objective, start=start), **knobs
    )
