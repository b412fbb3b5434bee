"""Auto-PGD's search, shared by every loss and norm (Croce and Hein, arXiv:2003.01690)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks_pool.engine import input_gradient, wrong
from attacks_pool.losses import LOSSES, Loss
from attacks_pool.norms import per_sample, project, random_point, steepest
from attacks_pool.randomness import draw_seed, keyed_generator

MOMENTUM = 0.75


def adaptive_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    restarts: int,
    loss: str,
    rho: float,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """z = Π(x_k + η·d), x_{k+1} = Π(x_k + 0.75·(z − x_k) + 0.25·(x_k − x_{k−1})), η = 2·eps at first.

    At the paper's checkpoints η halves, and the search goes back to its best point, where fewer than ``rho``
    of the steps raised the loss or neither η nor the best loss changed since the last checkpoint.

    Returns:
        The first iterate that fools the model, else the one of highest loss, like ``x``.
    """
    base = draw_seed(generator)
    best, best_loss = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        start = random_point(x, eps, norm, keyed_generator(base, restart))[active]
        run = _Run(x[active], y[active], start, norm, eps, LOSSES[loss])
        run.ascend(model, steps, rho, early_stop)
        value = torch.where(run.fooled, torch.inf, run.best_loss)
        better = value > best_loss[active]
        best[active[better]], best_loss[active[better]] = run.result()[better], value[better]
        if early_stop:
            active = active[~run.fooled]
        if not len(active):
            break
    return best


def checkpoints(steps: int) -> set[int]:
    """The steps after which progress is judged: intervals from 0.22 of all steps down to 0.06."""
    first, shrink, smallest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    found, at, interval = set(), first, first
    while at <= steps:
        found.add(at)
        interval = max(interval - shrink, smallest)
        at += interval
    return found


@dataclass
class _Working:
    """The tensors of the points that are still searched; ``index`` says which points they are."""

    index: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    best_gradient: Tensor
    step: Tensor
    raised: Tensor
    last_best: Tensor
    reduced: Tensor

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


class _Run:
    """One restart."""

    def __init__(self, x: Tensor, y: Tensor, start: Tensor, norm: str, eps: float, loss: Loss) -> None:
        self.norm, self.eps, self.loss = norm, eps, loss
        self.x, self.y, self.start = x, y, start
        self.best = start.clone()
        self.fooling = start.clone()
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.best_loss = torch.full((len(x),), -torch.inf, device=x.device)

    def result(self) -> Tensor:
        return torch.where(per_sample(self.fooled), self.fooling, self.best)

    def ascend(self, model: nn.Module, steps: int, rho: float, early_stop: bool) -> None:
        work = self._begin(model)
        judged, since = checkpoints(steps), 0
        for step in range(steps):
            if early_stop:
                work.keep(~self.fooled[work.index])
            if not len(work.index):
                return
            self._step(work, first=step == 0)
            # The iterate after the last step is judged too, but nothing needs its gradient.
            self._look(model, work)
            since += 1
            if step + 1 in judged:
                self._adapt(work, rho * since)
                since = 0

    def _begin(self, model: nn.Module) -> _Working:
        gradient, logits, values = input_gradient(model, self.start, self.y, self.loss)
        self.fooled = wrong(logits, self.y)
        self.best_loss = torch.nan_to_num(values, nan=torch.inf)
        zeros = torch.zeros_like(self.best_loss)
        return _Working(
            index=torch.arange(len(self.x), device=self.x.device),
            x=self.x,
            y=self.y,
            x_adv=self.start,
            before=self.start,
            gradient=gradient,
            loss=self.best_loss.clone(),
            best_gradient=gradient.clone(),
            step=zeros + 2 * self.eps,
            raised=zeros.clone(),
            last_best=self.best_loss.clone(),
            # The first checkpoint must not take "no better than at the start" for a halving already made.
            reduced=torch.ones_like(zeros, dtype=torch.bool),
        )

    def _step(self, work: _Working, *, first: bool) -> None:
        weight = 1.0 if first else MOMENTUM
        move = per_sample(work.step) * steepest(work.gradient, self.norm)
        z = project(work.x_adv + move, work.x, self.eps, self.norm)
        ahead = work.x_adv + weight * (z - work.x_adv) + (1 - weight) * (work.x_adv - work.before)
        work.before, work.x_adv = work.x_adv, project(ahead, work.x, self.eps, self.norm)

    def _look(self, model: nn.Module, work: _Working) -> None:
        """Loss and gradient at the new iterate; keeps the best point and the first that fools."""
        work.gradient, logits, values = input_gradient(model, work.x_adv, work.y, self.loss)
        values = torch.nan_to_num(values, nan=torch.inf)
        fresh = wrong(logits, work.y) & ~self.fooled[work.index]
        self.fooling[work.index[fresh]] = work.x_adv[fresh]
        self.fooled[work.index[fresh]] = True
        work.raised += values > work.loss
        work.loss = values
        better = values > self.best_loss[work.index]
        self.best[work.index[better]] = work.x_adv[better]
        self.best_loss[work.index[better]] = values[better]
        work.best_gradient[better] = work.gradient[better]

    def _adapt(self, work: _Working, needed: float) -> None:
        best = self.best_loss[work.index]
        stalled = (work.raised <= needed) | (~work.reduced & (work.last_best >= best))
        work.reduced, work.last_best = stalled, best.clone()
        work.raised.zero_()
        work.step = torch.where(stalled, work.step / 2, work.step)
        work.x_adv = torch.where(per_sample(stalled), self.best[work.index], work.x_adv)
        work.gradient = torch.where(per_sample(stalled), work.best_gradient, work.gradient)
