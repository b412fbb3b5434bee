"""EAD: the elastic-net attack, with the l1 decision rule."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import margin
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.norms import per_sample
from attacks_pool.registry import register
from attacks_pool.search.ascent import input_gradient
from attacks_pool.search.boundary import Smallest

LARGEST_CONST = 1e10


@register(
    AttackInfo(
        name="ead",
        family="minimal-norm",
        norm="l1",
        access="white-box",
        kind="minimal-norm",
        paper="1709.04114",
        knobs={
            "steps": metadata.steps(100, training=10),
            "step_size": Knob(0.01, "first gradient step, decreasing to 0", training=0.05, open_low=True),
            "binary_search_steps": Knob(9, "number of values of the constant c to try", training=3, low=1),
            "initial_const": Knob(1.0, "first value of c", open_low=True),
            "l1_weight": Knob(0.01, "weight of the l1 norm relative to the squared l2 norm"),
        },
        cost=lambda knobs, _classes: (
            2 * int(knobs["steps"]) * int(knobs["binary_search_steps"]),
            int(knobs["steps"]) * int(knobs["binary_search_steps"]),
        ),
    )
)
def ead(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    binary_search_steps: int,
    initial_const: float,
    l1_weight: float,
    generator: torch.Generator,  # noqa: ARG001 - the search is deterministic
    early_stop: bool,
) -> Tensor:
    """Elastic net: minimise c · max(z_y − max_{k≠y} z_k, 0) + ‖δ‖² + l1_weight · ‖δ‖₁, binary search over c.

    Chen et al., arXiv:1709.04114: iterative shrinkage-thresholding with momentum (FISTA). It keeps the
    success of smallest l1 norm (the paper's l1 decision rule). The search at one c runs all its steps.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    found = Smallest(x, "l1")
    ones = torch.ones(len(x), device=x.device)
    const, low, high = ones * initial_const, ones * 0, ones * LARGEST_CONST
    for _ in range(binary_search_steps):
        active = torch.nonzero(found.size > eps if early_stop else ones > 0).flatten()
        if not len(active):
            break
        walk = _Walk(active, x[active], y[active], const[active], x[active], x[active])
        success = _search(model, walk, found, steps, step_size, l1_weight, eps if early_stop else None)
        # Try a smaller c after success and a larger one after failure (times ten until one succeeds).
        high = torch.where(success, torch.minimum(high, const), high)
        low = torch.where(success, low, torch.maximum(low, const))
        const = torch.where(high >= LARGEST_CONST, const * 10, (low + high) / 2)
    return found.best


@dataclass
class _Walk:
    """Points still being searched: iterate ``x_adv``, and the point ``ahead`` where the gradient is taken."""

    index: Tensor
    x: Tensor
    y: Tensor
    const: Tensor
    x_adv: Tensor
    ahead: Tensor

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


def _search(
    model: nn.Module,
    walk: _Walk,
    found: Smallest,
    steps: int,
    step_size: float,
    l1_weight: float,
    enough: float | None,
) -> Tensor:
    """Run FISTA with the current c; returns which points of the batch had a success."""

    def hinge(logits: Tensor, y: Tensor) -> Tensor:
        return margin(logits, y).clamp_max(0)

    succeeded = torch.zeros(len(found.x), dtype=torch.bool, device=found.x.device)
    for step in range(steps):
        rate = step_size * (1 - step / steps) ** 0.5
        uphill, _logits, _loss = input_gradient(model, walk.ahead, walk.y, hinge)
        slope = 2 * (walk.ahead - walk.x) - per_sample(walk.const) * uphill
        before = walk.x_adv
        walk.x_adv = shrink(walk.ahead - rate * slope, walk.x, l1_weight)
        walk.ahead = walk.x_adv + step / (step + 3) * (walk.x_adv - before)
        with torch.no_grad():
            logits = model(walk.x_adv)
        success = found.record(model, walk.index, walk.x_adv, walk.y, logits)
        succeeded[walk.index] |= success
        if enough is not None:
            walk.keep(found.size[walk.index] > enough)
        if not len(walk.index):
            break
    return succeeded


def shrink(point: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Move each pixel by ``threshold`` towards ``x``, but not past it, and into [0, 1]."""
    delta = point - x
    return (x + delta.sign() * (delta.abs() - threshold).clamp_min(0)).clamp(0, 1)
