"""The one search that every budgeted gradient attack shares: projected gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks_pool.calling.randomness import draw_seed, keyed_generator
from attacks_pool.calling.slopes import usable
from attacks_pool.fast.copy import SearchModel
from attacks_pool.losses import LOSSES, Loss
from attacks_pool.norms import project, random_point, steepest


def broken(logits: Tensor) -> Tensor:
    """(N,) rows of logits (N, K) with a NaN or +∞, or without a finite one.

    −∞ is what a masked class gets: the model rules it out, and the others decide.
    """
    return (logits.isnan() | (logits == torch.inf)).any(1) | (logits == -torch.inf).all(1)


def input_gradient(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss, *, boxed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the summed loss at ``x``, the logits there, and the loss of each sample.

    Samples do not meet in a sum of per-sample losses, so none touches another's gradient. A model that
    passes no gradient back, or one that is not a number, counts as flat. An infinite slope is measured a
    little further inside the box, which costs the batch a second pass; for ``boxed`` see
    :func:`attacks_pool.calling.slopes.usable`.
    """
    gradient, logits, values = _gradient(model, x, y, loss)
    gradient = usable(gradient, x.detach(), lambda near: _gradient(model, near, y, loss)[0], boxed=boxed)
    return gradient, logits, values


def _gradient(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    logits = model(x)
    values = loss(logits, y)
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
    else:
        gradient = None
    if gradient is None:
        gradient = torch.zeros_like(x)
    return gradient, logits.detach(), values.detach()


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where the prediction is not ``y``; logits that are not numbers count as wrong."""
    mistaken = logits.argmax(1) != y
    # A sum is finite only if all of its terms are.
    return mistaken if math.isfinite(float(logits.sum())) else mistaken | broken(logits)


def fooled(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    """Where ``x`` fools the model for certain: what a search at reduced precision believes is checked.

    ``logits`` are what ``model`` said of ``x``. A search may freeze only such points.
    """
    believed = wrong(logits, y)
    if isinstance(model, SearchModel) and bool(believed.any()):
        believed = believed.clone()
        believed[believed.clone()] = wrong(model.exact_logits(x[believed]), y[believed])
    return believed


@dataclass
class Points:
    """The points that are still searched; ``index`` (n,) says which rows of the batch they are.

    ``x``, ``x_adv`` and ``velocity`` are (n, C, H, W), ``y`` is (n,); ``step`` counts from 0.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    velocity: Tensor
    step: int = 0

    def keep(self, rows: Tensor) -> None:
        """Drop all points but those of ``rows``, a mask (n,) or numbers."""
        self.index, self.x, self.y = self.index[rows], self.x[rows], self.y[rows]
        self.x_adv, self.velocity = self.x_adv[rows], self.velocity[rows]


Objective = Callable[[Tensor, Tensor], Tensor]
"""What is maximised: logits (n, K) and rows of the batch (n,) to values (n,)."""

Slope = Callable[[nn.Module, Points, torch.Generator], tuple[Tensor, Tensor | None]]
"""The gradient to follow (n, C, H, W), and the logits at ``x_adv`` where it knows them.

What it draws it draws from the generator for the whole batch and takes ``index`` of it, so that a point's
draws do not depend on which others are still searched.
"""


@dataclass(frozen=True)
class Ways:
    """Where a search departs from plain projected gradient ascent; each ``None`` stands for the plain way.

    ``start(x, generator)`` draws the first point of each row, already in ball and box;
    ``direction(gradient, points)`` turns the gradient into a step of unit length; ``look(model, x)`` gives
    the logits by which restarts are compared; ``groups`` (N,) joins rows that are attempts at one point: with
    ``early_stop`` the success of one stops them all.
    """

    objective: Objective | None = None
    slope: Slope | None = None
    start: Callable[[Tensor, torch.Generator], Tensor] | None = None
    direction: Callable[[Tensor, Points], Tensor] | None = None
    look: Callable[[nn.Module, Tensor], Tensor] | None = None
    groups: Tensor | None = None


PLAIN = Ways()


def gradient_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator,
    restarts: int = 1,
    random_start: bool = False,
    decay: float | None = None,
    loss: str = "ce",
    early_stop: bool = False,
    ways: Ways = PLAIN,
) -> Tensor:
    """x_{k+1} = Π(x_k + step_size · d_k), d_k the steepest direction of ∇ loss(f(x_k), y), Π onto the ball.

    With ``decay`` μ the direction is that of the velocity v_k = μ·v_{k−1} + ∇/‖∇‖₁ (arXiv:1710.06081).
    Of several restarts a point keeps the first that fools the model, else the one with the highest loss.
    ``early_stop`` freezes a point at the first iterate that fools the model and searches it no further.

    Returns:
        x_adv like ``x`` (N, C, H, W).
    """
    objective, base = ways.objective or _labelled(LOSSES[loss], y), draw_seed(generator)
    start = ways.start or (lambda x, draws: random_point(x, eps, norm, draws) if random_start else x)
    search = _Search(norm, eps, steps, step_size, decay, objective, early_stop, ways)
    best = x.clone()
    best_loss = torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        draws = keyed_generator(base, restart)
        begin = start(x, draws)[active]
        points = Points(active, x[active], y[active], begin, torch.zeros_like(begin))
        found, done = search.run(model, points, draws)
        if restarts == 1:
            best[active] = found
            return best
        with torch.no_grad():
            logits = ways.look(model, found) if ways.look else model(found)
        done = done | fooled(model, found, y[active], logits)
        value = torch.where(done, torch.inf, torch.nan_to_num(objective(logits, active), nan=torch.inf))
        better = value > best_loss[active]
        best[active[better]], best_loss[active[better]] = found[better], value[better]
        if early_stop:
            active = active[~search.with_their_group(active, done)]
            if not len(active):
                break
    return best


def _labelled(loss: Loss, y: Tensor) -> Objective:
    return lambda logits, rows: loss(logits, y[rows])


@dataclass(frozen=True)
class _Search:
    """One run of the ascent, from given starts."""

    norm: str
    eps: float
    steps: int
    step_size: float
    decay: float | None
    objective: Objective
    early_stop: bool
    ways: Ways

    def run(self, model: nn.Module, points: Points, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """The last iterate of each point (the first fooling one with ``early_stop``), and which fooled."""
        size, place = len(points.index), torch.arange(len(points.index), device=points.x.device)
        result = points.x_adv.clone()
        succeeded = torch.zeros(size, dtype=torch.bool, device=points.x.device)
        for step in range(self.steps):
            points.step = step
            gradient, logits = self._slope(model, points, draws)
            if self.early_stop:
                done = self._fooled(model, points, logits)
                if done.any():
                    succeeded[place[done]] = True
                    settled = self.with_their_group(points.index, done)
                    # Numbers of rows, found once: a mask would be searched for them each time.
                    gone, keep = (where.nonzero().flatten() for where in (settled, ~settled))
                    result[place[gone]] = points.x_adv[gone]
                    points.keep(keep)
                    place, gradient = place[keep], gradient[keep]
                if not len(place):
                    return result, succeeded
            if self.decay is not None:
                scale = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
                points.velocity = self.decay * points.velocity + gradient / scale.clamp_min(1e-38)
                gradient = points.velocity
            direction = self.ways.direction
            ahead = direction(gradient, points) if direction else steepest(gradient, self.norm)
            points.x_adv = project(points.x_adv + self.step_size * ahead, points.x, self.eps, self.norm)
        result[place] = points.x_adv
        return result, succeeded

    def _slope(
        self, model: nn.Module, points: Points, draws: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        if self.ways.slope is not None:
            return self.ways.slope(model, points, draws)
        gradient, logits, _values = input_gradient(model, points.x_adv, points.index, self.objective)
        return gradient, logits

    def _fooled(self, model: nn.Module, points: Points, logits: Tensor | None) -> Tensor:
        if logits is None:
            with torch.no_grad():
                logits = model(points.x_adv)
        return fooled(model, points.x_adv, points.y, logits)

    def with_their_group(self, rows: Tensor, done: Tensor) -> Tensor:
        """Which of ``rows`` (n,) are ``done`` (n,) or attempts at the same point as one that is."""
        if self.ways.groups is None:
            return done
        mine = self.ways.groups[rows]
        return torch.isin(mine, mine[done])
