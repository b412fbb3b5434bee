"""Projected gradient ascent, the search that the budgeted gradient attacks share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks_pool.calling.randomness import draw_seed, keyed_like
from attacks_pool.calling.slopes import usable
from attacks_pool.fast.copy import SearchModel
from attacks_pool.losses import LOSSES, Loss
from attacks_pool.norms import project, random_point, steepest


def broken(logits: Tensor) -> Tensor:
    """(N,) mask of rows of logits (N, K) that contain NaN or +∞, or have no finite entry.

    A single −∞ is allowed: it is the usual logit of a masked class, and the other classes decide.
    """
    return (logits.isnan() | (logits == torch.inf)).any(1) | (logits == -torch.inf).all(1)


def input_gradient(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss, *, boxed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the summed loss at ``x``, the logits there, and the loss of each sample.

    The sum of per-sample losses keeps the samples' gradients independent. If the model passes no gradient
    back, or NaN, the gradient is zero. An infinite slope is measured slightly inside the box, which costs a
    second pass of the batch; for ``boxed`` see :func:`attacks_pool.calling.slopes.usable`.
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
    """Where the prediction is not ``y``; broken logits (:func:`broken`) count as wrong."""
    mistaken = logits.argmax(1) != y
    # A sum is finite only if all of its terms are.
    return mistaken if math.isfinite(float(logits.sum())) else mistaken | broken(logits)


def fooled(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    """Where ``x`` certainly fools the model: results of a fast search copy are checked on the exact model.

    ``logits`` are the output of ``model`` for ``x``. A search may stop early only at these points.
    """
    believed = wrong(logits, y)
    if isinstance(model, SearchModel) and bool(believed.any()):
        believed = believed.clone()
        believed[believed.clone()] = wrong(model.exact_logits(x[believed]), y[believed])
    return believed


@dataclass
class Points:
    """The points that are still being searched; ``index`` (n,) gives their rows in the batch.

    ``x``, ``x_adv`` and ``velocity`` are (n, C, H, W), ``y`` is (n,); ``step`` counts from 0.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    velocity: Tensor
    step: int = 0

    def keep(self, rows: Tensor) -> None:
        """Keep only the points ``rows``, a mask (n,) or indices."""
        self.index, self.x, self.y = self.index[rows], self.x[rows], self.y[rows]
        self.x_adv, self.velocity = self.x_adv[rows], self.velocity[rows]


Objective = Callable[[Tensor, Tensor], Tensor]
"""The function to maximise: from logits (n, K) and rows of the batch (n,) to values (n,)."""

Slope = Callable[[nn.Module, Points, torch.Generator], tuple[Tensor, Tensor | None]]
"""Returns the gradient to follow (n, C, H, W), and the logits at ``x_adv`` if it has computed them.

It must draw random numbers for the whole batch and select those of ``index``, so that a point's draws do not
depend on which other points are still being searched.
"""


@dataclass(frozen=True)
class Ways:
    """Variations of plain projected gradient ascent; a field that is ``None`` keeps the plain behaviour.

    ``start(x, generator)`` draws the first point of each row, which must lie in ball and box;
    ``direction(gradient, points)`` turns the gradient into a step of unit length; ``look(model, x)`` computes
    the logits by which restarts are compared; ``groups`` (N,) marks rows that are attempts at the same point:
    with ``early_stop``, one success stops the whole group.
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

    With ``decay`` μ it follows the velocity v_k = μ·v_{k−1} + ∇/‖∇‖₁ instead (arXiv:1710.06081).
    Among restarts it keeps the first result that fools the model, otherwise the one with the highest loss.
    With ``early_stop`` it stops searching a point at the first iterate that fools the model.

    Returns:
        x_adv with the shape of ``x`` (N, C, H, W).
    """
    objective, base = ways.objective or _labelled(LOSSES[loss], y), draw_seed(generator)
    start = ways.start or (lambda x, draws: random_point(x, eps, norm, draws) if random_start else x)
    search = _Search(norm, eps, steps, step_size, decay, objective, early_stop, ways)
    best = x.clone()
    best_loss = torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        draws = keyed_like(generator, base, restart)
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
    """One run of the ascent from given starting points."""

    norm: str
    eps: float
    steps: int
    step_size: float
    decay: float | None
    objective: Objective
    early_stop: bool
    ways: Ways

    def run(self, model: nn.Module, points: Points, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """The last iterates (with ``early_stop`` the first fooling ones), and a mask of early successes."""
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
                    # Compute the indices once, since indexing with a mask would search it each time.
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
        """Mask of the ``rows`` (n,) whose point is finished: ``done`` (n,) holds for any of its attempts."""
        if self.ways.groups is None:
            return done
        mine = self.ways.groups[rows]
        return torch.isin(mine, mine[done])
