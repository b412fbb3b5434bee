"""Shared parts of minimal-norm searches: norms, linearised boundaries and the smallest perturbation found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.slopes import measured
from attacks_pool.losses import Loss, margin
from attacks_pool.norms import per_sample
from attacks_pool.search.ascent import fooled, input_gradient, wrong


@dataclass
class Walk:
    """Points still being searched: ``radius`` of their balls, ``crossed`` if they ever fooled the model."""

    index: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    radius: Tensor
    crossed: Tensor
    best: Tensor
    gradient: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    success: Tensor = field(init=False)

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


Move = Callable[[Walk, int], Tensor]
"""Takes the walk and the step number; sets the walk's radii and returns the next iterates."""


def adaptive_descent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    move: Move,
    *,
    norm: str,
    loss: Loss,
    radius: float,
    steps: int,
    enough: float | None,
) -> Tensor:
    """Iterate x_{k+1} = move(x_k) from the clean point; ``loss`` must grow towards the boundary.

    A point is finished once it has a success within ``enough``. The iterate after the last step counts too.

    Returns:
        The smallest successful perturbation of each point, or its last iterate if none succeeded.
    """
    found = Smallest(x, norm)
    ones = torch.ones(len(x), device=x.device)
    index = torch.arange(len(x), device=x.device)
    walk = Walk(index, x, y, x, ones * radius, torch.zeros_like(ones).bool(), found.size)
    for step in range(steps):
        walk.gradient, logits, walk.loss = input_gradient(model, walk.x_adv, walk.y, loss)
        walk.success = found.record(model, walk.index, walk.x_adv, walk.y, logits)
        walk.crossed = walk.crossed | walk.success
        walk.best = found.size[walk.index]
        if enough is not None:
            walk.keep(walk.best > enough)
        if not len(walk.index):
            return found.best
        walk.x_adv = move(walk, step)
    with torch.no_grad():
        found.record(model, walk.index, walk.x_adv, walk.y, model(walk.x_adv))
    return found.best


def passes(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost: a forward and a backward pass per step, and a forward pass for the last iterate."""
    return int(knobs["steps"]) + 1, int(knobs["steps"])


CREEP = 1e-4
"""Replaces the true gap of logits where a slope is infinite, its size unknown and the gradient rescaled.

The linearised boundary would then be at distance zero, and a step of length zero would not move the point.
"""
TIE = 1e-5
"""A margin of logits, relative to the largest, that rounding in another batch may reverse."""


def length(delta: Tensor, norm: str) -> Tensor:
    """(N,) norms of perturbations (N, …); l0 counts pixels (N, C, H, W) where any channel differs."""
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)
    size = delta.flatten(1).abs()
    if norm == "linf":
        return size.amax(1)
    return size.sum(1) if norm == "l1" else torch.linalg.vector_norm(size, dim=1)


DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""The dual norm, in which the length of a gradient converts a gap of logits into a distance."""


def dual_length(gradient: Tensor, norm: str) -> Tensor:
    """(N,) lengths of gradients (N, …) in the dual of ``norm``, accurate even if squares would underflow."""
    largest = gradient.flatten(1).abs().amax(1)
    unit = gradient / largest.clamp_min(1e-38).view(-1, *[1] * (gradient.ndim - 1))
    small = largest * length(unit, DUAL[norm])
    return torch.where(largest < 1e-15, small, length(gradient, DUAL[norm]))


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Cosine annealing from ``first`` at step 0 towards ``last`` at step ``steps``."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def rivals(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """(N, J) the ``count`` most likely classes other than ``y``, or all of them if there are fewer."""
    others = torch.nan_to_num(logits.float(), nan=0.0).clamp(-1e30, 1e30).scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def nearest_plane(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The linearised boundary of the nearest class, which minimises |z_k − z_y| / ‖∇(z_k − z_y)‖_dual.

    Args:
        model: maps images to logits.
        x: points (M, C, H, W) with labels ``y`` (M,).
        classes: (M, J) candidate classes k ≠ y; each costs a backward pass.
        norm: the norm of the distance.

    Returns:
        The gap z_k − z_y (M,), its gradient with the shape of ``x`` and the logits (M, K). Gap and gradient
        are zero if the model passes no gradient back or if no gap is finite. An infinite slope is measured
        slightly inside the box (:func:`attacks_pool.calling.slopes.measured`).
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    gaps = _gaps(logits, y, classes)
    normal, gap = torch.zeros_like(x), torch.zeros(len(x), device=x.device)
    nearest = torch.full_like(gap, torch.inf)
    for number, gap_k in enumerate(gaps.unbind(1)):
        more = number + 1 < gaps.shape[1]
        gradient = _slope(gap_k, x, keep=more)
        gap_k = gap_k.detach()
        # Before the boundary, the step increases the gap; beyond it, the step decreases the gap.
        way = per_sample(torch.where(gap_k > 0, -1.0, 1.0))

        def again(near: Tensor, number: int = number, way: Tensor = way) -> Tensor:
            near = near.requires_grad_()
            return way * _slope(_gaps(model(near), y, classes[:, number : number + 1]).squeeze(1), near)

        gradient, steep = measured(way * gradient, x.detach(), again)
        gradient = way * gradient
        # The gap to a masked class (logit −∞) cannot be closed.
        reachable = torch.isfinite(gap_k)
        gap_k = torch.where(steep & reachable, gap_k.sign() * CREEP, gap_k)
        distance = gap_k.abs() / (length(gradient, DUAL[norm]) + 1e-12)
        nearer = (distance < nearest) & reachable
        nearest = torch.where(nearer, distance, nearest)
        gap = torch.where(nearer, gap_k, gap)
        normal = torch.where(per_sample(nearer), gradient, normal)
    return gap, normal.detach(), logits.detach()


def _gaps(logits: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """z_k − z_y (M, J)."""
    return logits.float().gather(1, classes) - logits.float().gather(1, y[:, None])


def _slope(values: Tensor, x: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of each of ``values`` (M,), zero if there is none; ``keep`` retains the graph."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


class Smallest:
    """Records, for each point, the smallest perturbation so far that fools the model."""

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self.norm = x, norm
        self.best = x.clone()
        self.size = torch.full((len(x),), torch.inf, device=x.device)

    def record(
        self,
        model: nn.Module,
        points: Tensor,
        x_adv: Tensor,
        y: Tensor,
        logits: Tensor,
        certain_within: float = math.inf,
    ) -> Tensor:
        """Record each of ``x_adv`` that fools the model and is smaller; ``points`` gives their rows.

        A perturbation so close to a tie that rounding could reverse it is not recorded. A point without any
        success records its current iterate, so that it ends with the last one. A perturbation larger than
        ``certain_within`` is not checked in full precision, since it exceeds the budget in any case.

        Returns:
            (M,) mask of the points that fool the model, which is checked within ``certain_within``
            (:func:`attacks_pool.search.ascent.fooled`).
        """
        size = length(x_adv - self.x[points], self.norm)
        success = wrong(logits, y)
        if bool((near := success & (size <= certain_within)).any()):
            success[near.clone()] = fooled(model, x_adv[near], y[near], logits[near])
        scale = logits.float().abs()
        tie = margin(logits, y) <= TIE * scale.masked_fill(scale.isinf(), 0.0).amax(1)
        better = success & ~tie & (size < self.size[points])
        self.size[points[better]] = size[better]
        moved = better | torch.isinf(self.size[points])
        self.best[points[moved]] = x_adv[moved]
        return success
