"""What searches for the smallest perturbation share: norms, linearised boundaries, the record of the best."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attacks_pool.engine import fooled, wrong
from attacks_pool.losses import margin

TIE = 1e-5
"""A lead of logits, relative to the largest, that the rounding of another batch may turn round."""


def length(delta: Tensor, norm: str) -> Tensor:
    """(N,) norms of perturbations (N, …); l0 counts pixels (N, C, H, W) in which any channel differs."""
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)
    size = delta.flatten(1).abs()
    if norm == "linf":
        return size.amax(1)
    return size.sum(1) if norm == "l1" else torch.linalg.vector_norm(size, dim=1)


DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""The norm in which a gradient turns a gap of logits into a distance."""


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Cosine annealing from ``first`` at step 0 towards ``last`` at step ``steps``."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def rivals(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` most likely classes other than ``y``, or all of them if there are fewer: (N, J)."""
    others = torch.nan_to_num(logits.float(), nan=0.0).clamp(-1e30, 1e30).scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def nearest_plane(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The linearised boundary of the nearest class: |z_k − z_y| / ‖∇(z_k − z_y)‖_dual is the smallest.

    Args:
        model: images to logits.
        x: points (M, C, H, W) with labels ``y`` (M,).
        classes: (M, J) classes k ≠ y that come into question; each costs a backward pass.
        norm: that of the distance.

    Returns:
        The gap z_k − z_y (M,), its gradient like ``x`` and the logits (M, K). A model that passes no gradient
        back, or numbers that are none, give zeros.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    gaps = logits.float().gather(1, classes) - logits.float().gather(1, y[:, None])
    normal, gap = torch.zeros_like(x), torch.zeros(len(x), device=x.device)
    nearest = torch.full_like(gap, torch.inf)
    for number, gap_k in enumerate(gaps.unbind(1)):
        gradient = None
        if gaps.requires_grad:
            more = number + 1 < gaps.shape[1]
            (gradient,) = torch.autograd.grad(gap_k.sum(), x, retain_graph=more, allow_unused=True)
        gradient = torch.zeros_like(x) if gradient is None else gradient
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        gap_k = torch.nan_to_num(gap_k.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        distance = gap_k.abs() / (length(gradient, DUAL[norm]) + 1e-12)
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        gap = torch.where(nearer, gap_k, gap)
        normal = torch.where(nearer.view(-1, 1, 1, 1), gradient, normal)
    return gap, normal.detach(), logits.detach()


class Smallest:
    """The smallest perturbation found so far that fools the model, for each point."""

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
        """Keep those of ``x_adv`` that fool the model and are smaller; ``points`` says which they are.

        What stands so close to a tie that the next rounding may undo it is not kept. A point without a
        success keeps the present one, so that it ends with its last iterate. A perturbation larger than
        ``certain_within`` is believed at reduced precision: at that budget it is no success anyway.

        Returns:
            (M,) which fool the model, checked within ``certain_within`` (:func:`attacks_pool.engine.fooled`).
        """
        size = length(x_adv - self.x[points], self.norm)
        success = wrong(logits, y)
        if bool((near := success & (size <= certain_within)).any()):
            success[near.clone()] = fooled(model, x_adv[near], y[near], logits[near])
        tie = margin(logits, y) <= TIE * logits.float().abs().amax(1)
        better = success & ~tie & (size < self.size[points])
        self.size[points[better]] = size[better]
        moved = better | torch.isinf(self.size[points])
        self.best[points[moved]] = x_adv[moved]
        return success
