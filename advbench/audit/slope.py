"""Checks that a model has input gradients, and that they are the slope of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.evaluation.shards import blocks
from advbench.evaluation.stochastic import logits_of
from attacks_pool.calling.guard import buffers_kept, untouched
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator, uniform
from attacks_pool.losses import LOSSES, Loss
from attacks_pool.verifier import exact_arithmetic
from leaderboards import Flag

LEAST_SHARE = 0.05
"""From this share of points without a gradient on, their lack is not an accident."""
RISES = (1e-3, 1e-2, 1e-1)
"""Target rises of the margin, relative to the largest logit: a step length is the rise over the slope."""
FURTHEST = 0.02
"""The longest step, per pixel (root mean square)."""
NOISE = 2e-6
"""The rounding error of a difference of two float32 logits, relative to the largest logit."""
CLOSE = 0.25
"""The relative difference up to which two slopes agree; a kink may lie between the two points."""
LEAST_AGREEMENT = 0.9
"""The share of points whose slopes must agree."""
LEAST_JUDGED = 8
"""The fewest points that allow a statement about a model."""


@dataclass(frozen=True)
class Gradients:
    """Counts of correct points (of ``points``) whose input gradient is all zero or NaN, by loss.

    Each count is the larger one of two places: the clean points, and random points in the balls around them.
    """

    points: int
    ce: int
    margin: int

    def share(self, loss: str) -> float:
        """The count of a loss as a share."""
        return getattr(self, loss) / self.points if self.points else 0.0


def gradients(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Gradients:
    """Count missing input gradients at correctly classified ``x``, and at random points within eps."""
    if not len(x):
        return Gradients(0, 0, 0)
    noise = uniform(x, keyed_generator("gradients", seed), -eps, eps)
    places = (x, (x + noise).clamp(0, 1))
    counts = {
        name: max(_without_gradient(model, place, y, LOSSES[name], seed) for place in places)
        for name in ("ce", "margin")
    }
    return Gradients(len(x), counts["ce"], counts["margin"])


def _without_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, seed: int) -> int:
    flat = _gradients(model, x, y, loss, key_seed("gradient", seed))[0].flatten(1)
    return int(((flat == 0) | flat.isnan()).all(1).sum())


def slope_flags(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Iterator[Flag]:
    """``false-gradient``: the gradient of the margin is not the slope of the margin.

    With m(x) = z_y(x) − z_k(x), k the class that competes with y, and u = ∇m / ‖∇m‖₂, an honest model has
    (m(x + h·u) − m(x − h·u)) / 2h ≈ ‖∇m‖₂. This does not hold for a model that returns the value of one
    function and the gradient of another (``a + b − b.detach()``), or that flips or shuffles its gradient.
    Three step lengths h are tried, because a piecewise linear model has kinks; any of them may agree.

    Args:
        model: maps images to logits; must not be randomised.
        x, y: points (N, C, H, W) and labels (N,) that the model gets right. They go through the model in the
            blocks of a search.
        eps: points are moved by noise of up to this size and away from the walls of the box, so that neither
            clean points nor a clamped input hide a slope.
        seed: the key of the noise.
    """
    if not len(x):
        return
    noise = uniform(x, keyed_generator("slope", seed), -eps, eps)
    x = (x + noise).clamp(2 * FURTHEST, 1 - 2 * FURTHEST)
    gradient, logits = _gradients(
        model, x, y, lambda z, labels: _margin(z, labels, _rivals(z, labels)), key_seed("slope", seed)
    )
    logits, rivals = logits.double(), _rivals(logits, y)
    pair = torch.stack([logits.gather(1, one[:, None]) for one in (y, rivals)])
    size = pair.abs().amax((0, 2)).clamp_min(1e-30)
    flat = gradient.flatten(1).double()
    slope = flat.norm(dim=1)
    present = torch.isfinite(slope) & (slope > 0)
    unit = torch.where(present[:, None], flat / slope.clamp_min(1e-300)[:, None], 0.0).view_as(x)
    judged, agrees = torch.zeros_like(present), torch.zeros_like(present)
    furthest = FURTHEST * x[0].numel() ** 0.5
    for rise in RISES:
        # The step stays within the box in every pixel, and is long enough for float32 to resolve the rise.
        step = (rise * size / slope.clamp_min(1e-300)).clamp_max(furthest)
        step = torch.minimum(step, 2 * FURTHEST / unit.flatten(1).abs().amax(1).clamp_min(1e-12))
        up, down = (
            _margin_at(model, (x + sign * step.view(-1, 1, 1, 1) * unit).to(x.dtype), y, rivals, seed)
            for sign in (1, -1)
        )
        found = (up - down) / (2 * step)
        resolved = present & (NOISE * size / step < CLOSE / 2 * slope)
        judged |= resolved
        agrees |= resolved & ((found - slope).abs() <= CLOSE * slope)
    count, agreeing = int(judged.sum()), int(agrees.sum())
    if count >= LEAST_JUDGED and agreeing < LEAST_AGREEMENT * count:
        wrong = f"at {count - agreeing} of {count} points the gradient is not the slope of the logits"
        message = f"{wrong}, which misleads gradient attacks"
        yield Flag.of("false-gradient", message, points=count, agree=agreeing, least_share=LEAST_AGREEMENT)


def _gradients(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, seed: int) -> tuple[Tensor, Tensor]:
    """The gradient of each point's loss (N, C, H, W), zero where there is none, and the logits (N, K)."""
    gradients, answers = [], []
    for block in blocks(x.shape[1:], len(x)):
        with (
            isolated_randomness(seed, x.device),
            buffers_kept(model),
            untouched(model),
            exact_arithmetic(x.device),
        ):
            point = x[block].detach().clone().requires_grad_()
            logits = model(point)
            value = loss(logits, y[block]).sum()
            found = torch.autograd.grad(value, point, allow_unused=True)[0] if value.requires_grad else None
        gradients.append(torch.zeros_like(point) if found is None else found)
        answers.append(logits.detach())
    return torch.cat(gradients), torch.cat(answers)


def _rivals(logits: Tensor, y: Tensor) -> Tensor:
    """The most likely class (N,) other than ``y``."""
    return logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)


def _margin(logits: Tensor, y: Tensor, rivals: Tensor) -> Tensor:
    return (logits.gather(1, y[:, None]) - logits.gather(1, rivals[:, None])).squeeze(1)


def _margin_at(model: nn.Module, x: Tensor, y: Tensor, rivals: Tensor, seed: int) -> Tensor:
    with buffers_kept(model):
        parts = [x[block] for block in blocks(x.shape[1:], len(x))]
        logits = torch.cat([logits_of(model, part, key_seed("slope", seed)) for part in parts]).double()
    return _margin(logits, y, rivals)
