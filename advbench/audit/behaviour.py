"""Checks of a model's outputs and gradients: whether they are numbers, logits, and not all zero."""

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
from attacks_pool.verifier import exact_arithmetic, no_number
from leaderboards import Flag

LEAST_SHARE = 0.05
"""From this share of points without a gradient on, their lack is not an accident."""


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


def logit_flags(model: nn.Module, x: Tensor, seed: int, device: torch.device | None = None) -> Iterator[Flag]:
    """``nan-logits`` and ``probabilities-not-logits``, over all unattacked points ``x`` (N, C, H, W).

    Only one block of points is moved to ``device`` at a time.
    """
    broken, probable = 0, bool(len(x))
    for block in blocks(x.shape[1:], len(x)):
        logits = logits_of(model, x[block].to(device or x.device), seed)
        finite = ~no_number(logits)
        broken += int((~finite).sum())
        known = logits[finite]
        sums = (known.sum(1) - 1).abs() < 1e-3
        probable &= bool(sums.all()) and bool(((known >= -1e-6) & (known <= 1 + 1e-6)).all())
    if broken:
        yield Flag(
            code="nan-logits",
            message=f"{broken} of {len(x)} clean points get logits that are no numbers",
            evidence={"count": broken, "points": len(x), "where": "clean"},
        )
    if probable and broken < len(x):
        yield Flag(
            code="probabilities-not-logits",
            message="outputs lie in [0, 1] and sum to 1: they are probabilities, which flatten gradients",
            evidence={"points": len(x) - broken},
        )


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
    count = 0
    for block in blocks(x.shape[1:], len(x)):
        with (
            isolated_randomness(key_seed("gradient", seed), x.device),
            buffers_kept(model),
            untouched(model),
            exact_arithmetic(x.device),
        ):
            point = x[block].detach().clone().requires_grad_()
            values = loss(model(point), y[block])
            found = (
                torch.autograd.grad(values.sum(), point, allow_unused=True)[0]
                if values.requires_grad
                else None
            )
        if found is None:
            count += len(point)
            continue
        flat = found.flatten(1)
        count += int(((flat == 0) | flat.isnan()).all(1).sum())
    return count
