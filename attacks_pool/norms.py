"""Geometry of norm balls: norms, directions, projections and random starts; tensors are (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks_pool.calling.randomness import normal, uniform


def per_sample(values: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def l2_norm(delta: Tensor) -> Tensor:
    """(N, 1, 1, 1) Euclidean norms."""
    return per_sample(delta.flatten(1).norm(dim=1))


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The unit-norm direction in which a linear function with this gradient grows fastest.

    linf: sign(g); l2: g/‖g‖. A zero gradient gives a zero direction.
    """
    if norm == "linf":
        return gradient.sign()
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
    return scaled / l2_norm(scaled).clamp_min(1e-12)


def project(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Project ``x_adv`` onto the ball around ``x`` and into [0, 1].

    linf and l1 return the nearest point (in the Euclidean sense) that lies in both. l2 scales the
    perturbation down and l0 keeps its eps largest pixels; the point is clamped afterwards, which moves each
    pixel towards ``x`` and so never leaves the ball.
    """
    if norm == "linf":
        return x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    delta = x_adv - x
    if norm == "l0":
        rank = delta.abs().amax(1).flatten(1).argsort(1, descending=True).argsort(1)
        return (x + delta * (rank < int(eps)).view(len(x), 1, *x.shape[2:])).clamp(0, 1)
    if norm == "l1":
        return (x + _shrink(delta, x, eps)).clamp(0, 1)
    length = l2_norm(delta).clamp_min(1e-12)
    return (x + delta * (eps / length).clamp_max(1.0)).clamp(0, 1)


def _shrink(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The perturbation nearest to ``delta`` with l1 norm at most ``eps`` that keeps ``x`` in [0, 1].

    It is sign(δ_i) · min(max(|δ_i| − λ, 0), r_i), where r_i is the distance from pixel i to its limit in that
    direction and λ ≥ 0 is the smallest value that satisfies the bound (Croce and Hein, arXiv:2103.01208).
    Its norm at λ is Σ max(|δ_i| − λ, 0) − Σ max(|δ_i| − r_i − λ, 0), linear between the 2d values |δ_i| and
    |δ_i| − r_i, so sorting those gives λ exactly. It uses float64, because it subtracts long sums.
    """
    size = delta.abs().flatten(1).double()
    room = torch.where(delta > 0, 1 - x, x).flatten(1).double()
    past = (size - room).clamp_min(0)
    knots, order = torch.cat([size, past], 1).sort(dim=1, descending=True)
    weight = 1 - 2 * (order >= size.shape[1]).double()
    slope, above = weight.cumsum(1), (weight * knots).cumsum(1)
    last = ((above - slope * knots) <= eps).sum(1, keepdim=True).clamp_min(1) - 1
    threshold = (above.gather(1, last) - eps) / slope.gather(1, last).clamp_min(1)
    threshold = torch.where((size - past).sum(1, keepdim=True) > eps, threshold, 0.0)
    kept = torch.minimum((size - threshold).clamp_min(0), room)
    return delta.sign() * kept.view_as(delta).to(delta.dtype)


def random_point(x: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """Draw a start in the ball: uniform for linf; uniform direction and uniform length for l2.

    For l1 it is x + N(0, I), projected onto ball and box, which changes few pixels (arXiv:2103.01208).
    """
    if norm == "linf":
        return project(x + uniform(x, generator, -eps, eps), x, eps, norm)
    direction = normal(x, generator)
    if norm == "l1":
        return project(x + direction, x, eps, norm)
    length = uniform(x[:, :1, :1, :1], generator, 0.0, eps)
    return project(x + direction / l2_norm(direction).clamp_min(1e-12) * length, x, eps, norm)
