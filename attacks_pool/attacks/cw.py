"""Carlini and Wagner's l2 attack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.slopes import usable
from attacks_pool.losses import margin
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register

MOMENTS = (0.9, 0.999)
LARGEST_CONST = 1e10


@register(
    AttackInfo(
        name="cw",
        family="minimal-norm",
        norm="l2",
        access="white-box",
        kind="minimal-norm",
        paper="1608.04644",
        cost=lambda knobs, _classes: (knobs["binary_search_steps"] * (knobs["steps"] + 1),) * 2,
        knobs={
            "steps": metadata.steps(100, training=10),
            "step_size": Knob(0.02, "step size of Adam, in image units", training=0.1, open_low=True),
            "binary_search_steps": Knob(6, "number of values of the constant c to try", training=1, low=1),
            "initial_const": Knob(1.0, "first value of c", open_low=True),
            "confidence": Knob(0.0, "margin of logits required for success", training=10.0),
        },
    )
)
def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    binary_search_steps: int,
    initial_const: float,
    confidence: float,
    generator: torch.Generator,  # noqa: ARG001 - the search is deterministic
    early_stop: bool,
) -> Tensor:
    """Carlini-Wagner l2: minimise ‖δ‖² + c · max(z_y − max_{k≠y} z_k, −confidence), binary search over c.

    arXiv:1608.04644. The paper has three ways to stay in [0, 1]; this uses projection after each Adam step.
    The change of variables would fail, since tanh has no gradient where a pixel is exactly 0 or 1, as most
    pixels of digits are. Adam's step shrinks to 0 over the second half of a search. A constant step, as in
    the paper, jumps back and forth over a boundary that is nearer than step_size · √pixels. Returns the
    smallest successful perturbation of each point, or the last iterate if none succeeded.
    ``early_stop`` stops at the first success within ``eps``. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    state = _State.begin(x, y, initial_const)
    for _ in range(binary_search_steps):
        if early_stop:
            state.active = torch.nonzero(state.best_norm > eps).flatten()
        if not len(state.active):
            break
        _search(model, state, steps, step_size, confidence, eps if early_stop else None)
    return state.best


@dataclass
class _State:
    """State of each point: bounds of c and the best perturbation; ``active`` are still being searched."""

    x: Tensor
    y: Tensor
    const: Tensor
    low: Tensor
    high: Tensor
    best: Tensor
    best_norm: Tensor
    active: Tensor

    @classmethod
    def begin(cls, x: Tensor, y: Tensor, const: float) -> "_State":
        ones = torch.ones(len(x), device=x.device)
        active = torch.arange(len(x), device=x.device)
        return cls(x, y, ones * const, ones * 0, ones * LARGEST_CONST, x.clone(), ones * torch.inf, active)


def _search(
    model: nn.Module, state: _State, steps: int, step_size: float, confidence: float, enough: float | None
) -> None:
    """Run Adam with the current c, record successes and then halve the interval of c."""
    points = state.active
    x, y, const = state.x[points], state.y[points], state.const[points]
    x_adv, mean, square = x, torch.zeros_like(x), torch.zeros_like(x)
    succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    running = torch.arange(len(x), device=x.device)
    for step in range(steps + 1):

        def slope(at: Tensor, running: Tensor = running) -> tuple[Tensor, Tensor, Tensor]:
            return _slope(model, at.detach(), x[running], y[running], const[running], confidence)

        gradient, gap, norm_squared = slope(x_adv)
        success = gap >= confidence if confidence > 0 else gap > 0
        _record(state, points[running], x_adv, norm_squared.sqrt(), success)
        succeeded[running] |= success
        # usable() expects an ascent direction, but this search descends, so both signs are flipped.
        gradient = -usable(-gradient, x_adv, lambda near: slope(near)[0])
        if step == steps:
            break
        if enough is not None:
            keep = state.best_norm[points[running]] > enough
            if not keep.all():
                running, x_adv, gradient = running[keep], x_adv[keep], gradient[keep]
                mean, square = mean[keep], square[keep]
            if not len(running):
                break
        mean = MOMENTS[0] * mean + (1 - MOMENTS[0]) * gradient
        square = MOMENTS[1] * square + (1 - MOMENTS[1]) * gradient.square()
        unbiased = (square / (1 - MOMENTS[1] ** (step + 1))).sqrt()
        direction = mean / (1 - MOMENTS[0] ** (step + 1)) / (unbiased + 1e-8)
        x_adv = (x_adv - step_size * min(1.0, 2 - 2 * step / steps) * direction).clamp(0, 1)
    _narrow(state, points, succeeded)
    lost = torch.isinf(state.best_norm[points[running]])
    state.best[points[running[lost]]] = x_adv[lost]


def _slope(
    model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, const: Tensor, confidence: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the objective, margin and squared norm at ``x_adv``."""
    x_adv = x_adv.requires_grad_()
    gap = margin(model(x_adv), y)
    norm_squared = (x_adv - x).square().flatten(1).sum(1)
    objective = norm_squared + const * (confidence - gap).clamp_min(0)
    (gradient,) = torch.autograd.grad(objective.sum(), x_adv)
    return gradient, gap.detach(), norm_squared.detach()


def _record(state: _State, points: Tensor, x_adv: Tensor, norm: Tensor, success: Tensor) -> None:
    better = success & (norm < state.best_norm[points])
    state.best[points[better]] = x_adv[better]
    state.best_norm[points[better]] = norm[better]


def _narrow(state: _State, points: Tensor, succeeded: Tensor) -> None:
    """Try a smaller c after success and a larger one after failure (times ten until one succeeds)."""
    const, low, high = state.const[points], state.low[points], state.high[points]
    high = torch.where(succeeded, torch.minimum(high, const), high)
    low = torch.where(succeeded, low, torch.maximum(low, const))
    middle = (low + high) / 2
    state.const[points] = torch.where(high >= LARGEST_CONST, const * 10, middle)
    state.low[points], state.high[points] = low, high
