"""SPSA: ascent along gradients estimated from queries."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import draw_seed, keyed_like, uniform
from attacks_pool.losses import margin
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.norms import per_sample, project
from attacks_pool.registry import register
from attacks_pool.search.ascent import fooled

MOMENTS = (0.9, 0.999)
LARGEST = 1e12
"""Replaces an infinite margin."""
ELEMENTS = 2**21
"""Number of image values per call of the model, unless the batch has more."""


def _cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost: two queries per sample, and one at each iterate."""
    return int(knobs["steps"]) * (2 * int(knobs["samples"]) + 1) + 1, 0


@register(
    AttackInfo(
        name="spsa",
        family="query",
        norm="linf",
        access="black-box",
        paper="1802.05666",
        cost=_cost,
        knobs={
            "steps": metadata.steps(100, training=10),
            "step_size": metadata.step_size(2.5),
            "samples": Knob(32, "number of random directions per step", training=8, low=1),
            "delta": Knob(0.01, "distance of the queries from the iterate", open_low=True, high=1.0),
        },
    )
)
def spsa(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    samples: int,
    delta: float,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """SPSA, linf: Adam on gradients of the margin that are estimated from pairs of queries.

    Uesato et al., arXiv:1802.05666: g = mean_i (m(x + δ·v_i) − m(x − δ·v_i)) / (2δ) · v_i, v_i random signs,
    m the margin. It uses only logits and starts at the clean point; Adam steps along g are projected onto
    ball and box. Returns the iterate of largest margin, with ``early_stop`` the first that fools the model.
    Shapes as in :class:`attacks_pool.Attack`.
    """
    base = draw_seed(generator)
    at_once = min(samples, max(1, ELEMENTS // x.numel() // 2))
    best, best_gap = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    active, x_adv = torch.arange(len(x), device=x.device), x
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    with torch.no_grad():
        for step in range(steps + 1):
            logits = model(x_adv)
            gap = torch.nan_to_num(margin(logits, y[active]), nan=torch.inf)
            better = gap > best_gap[active]
            best[active] = torch.where(per_sample(better), x_adv, best[active])
            best_gap[active] = torch.where(better, gap, best_gap[active])
            if early_stop:
                done = fooled(model, x_adv, y[active], logits)
                if bool(done.any()):
                    best[active[done]] = x_adv[done]
                    active, x_adv, mean, square = active[~done], x_adv[~done], mean[~done], square[~done]
            if step == steps or not len(active):
                break
            draws = keyed_like(generator, base, step)
            slope, asked = torch.zeros_like(x_adv), 0
            while asked < samples:
                count = min(at_once, samples - asked)
                signs = torch.stack([uniform(x, draws, -1.0, 1.0).sign()[active] for _ in range(count)])
                slope += summed_estimates(model, x_adv, y[active], signs, delta)
                asked += count
            slope /= samples
            mean = MOMENTS[0] * mean + (1 - MOMENTS[0]) * slope
            square = MOMENTS[1] * square + (1 - MOMENTS[1]) * slope.square()
            spread = (square / (1 - MOMENTS[1] ** (step + 1))).sqrt()
            direction = mean / (1 - MOMENTS[0] ** (step + 1)) / (spread + 1e-8)
            x_adv = project(x_adv + step_size * direction, x[active], eps, "linf")
    return best


def summed_estimates(model: nn.Module, x: Tensor, y: Tensor, signs: Tensor, delta: float) -> Tensor:
    """Σ_i (m(x + δ·v_i) − m(x − δ·v_i)) / (2δ) · v_i, like ``x``, for ``signs`` v (samples, N, C, H, W).

    NaN estimates count as 0.
    """
    count = len(signs)
    moved = torch.cat([x + delta * signs, x - delta * signs]).flatten(0, 1)
    # Finite, so that a class that is masked only on one side still gives a slope.
    gaps = margin(model(moved), y.repeat(2 * count)).clamp(-LARGEST, LARGEST).view(2, count, len(x))
    slope = torch.nan_to_num((gaps[0] - gaps[1]) / (2 * delta), nan=0.0)
    return (slope.view(count, len(x), 1, 1, 1) * signs).sum(0)
