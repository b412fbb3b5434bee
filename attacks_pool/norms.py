"""Geometry of the norm balls that searches move in; all tensors (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks_pool.randomness import normal, uniform


def per_sample(values: Tensor) -> Tensor:
    """(N,) to (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def l2_norm(delta: Tensor) -> Tensor:
    """(N, 1, 1, 1) Euclidean norms."""
    return per_sample(delta.flatten(1).norm(dim=1))


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The direction of unit norm along which a linear function with this gradient grows fastest.

    linf: sign(g); l2: g/‖g‖. A zero gradient gives a zero direction.
    """
    if norm == "linf":
        return gradient.sign()
    # Scaling by the largest entry first keeps tiny gradients from vanishing in the square.
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
    return scaled / l2_norm(scaled).clamp_min(1e-12)


def project(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """``x_adv`` brought back to the ball around ``x`` and into [0, 1].

    l2 and l1 shorten the perturbation, l0 keeps its eps largest pixels. A shortened point is clamped
    afterwards, which moves each pixel towards ``x`` and so never leaves the ball.
    """
    if norm == "linf":
        return x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    delta = x_adv - x
    if norm == "l0":
        rank = delta.abs().amax(1).flatten(1).argsort(1, descending=True).argsort(1)
        return (x + delta * (rank < int(eps)).view(len(x), 1, *x.shape[2:])).clamp(0, 1)
    if norm == "l1":
        length = per_sample(delta.abs().flatten(1).sum(1)).clamp_min(1e-12)
    else:
        length = l2_norm(delta).clamp_min(1e-12)
    return (x + delta * (eps / length).clamp_max(1.0)).clamp(0, 1)


def random_point(x: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """A start drawn in the ball: uniform for linf; for l2 a uniform direction and a uniform length."""
    if norm == "linf":
        return project(x + uniform(x, generator, -eps, eps), x, eps, norm)
    direction = normal(x, generator)
    length = uniform(x[:, :1, :1, :1], generator, 0.0, eps)
    return project(x + direction / l2_norm(direction).clamp_min(1e-12) * length, x, eps, norm)
