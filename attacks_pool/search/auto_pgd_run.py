"""One run of Auto-PGD: its steps, its step sizes, and which iterates it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from attacks_pool.norms import per_sample, project, steepest
from attacks_pool.search.ascent import fooled, input_gradient

MOMENTUM = 0.75
LONGEST = {"linf": 2.0, "l2": 2.0, "l1": 1.0}
"""Length of the first step, in units of eps."""
SHORTEST_SPARSE, SHRINK_SPARSE = 0.1, 1.5
"""l1: the shortest step as a share of the longest, and the divisor by which a step shrinks."""
FIRST_SHARE = 0.2
"""l1: share of coordinates that the first steps change."""

RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The function to maximise: from logits (R, K), labels (R,) and target classes (R,) to values (R,)."""


@dataclass(frozen=True)
class AscentPlan:
    """Settings of a run; with ``first`` it keeps the first fooling iterate, else the one of highest loss."""

    norm: str
    eps: float
    steps: int
    rho: float
    loss: RowLoss
    early_stop: bool
    first: bool = False
    eot_steps: int = 1
    judged: bool = True

    def phases(self) -> list[AscentPlan]:
        """The consecutive searches: l1 has three, in balls of 3, 2 and 1 eps (arXiv:2103.01208)."""
        widened = -(-3 * self.steps // 10)
        last = self.steps - 2 * widened
        if self.norm != "l1" or last < 1:
            return [self]
        wide = [
            replace(self, eps=k * self.eps, steps=widened, judged=False, early_stop=False) for k in (3, 2)
        ]
        return [*wide, replace(self, steps=last)]


def checkpoints(steps: int) -> set[int]:
    """Step numbers at which progress is checked; their intervals shrink from 0.22 to 0.06 of all steps."""
    first, shrink, smallest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    found, at, interval = set(), first, first
    while at <= steps:
        found.add(at)
        interval = max(interval - shrink, smallest)
        at += interval
    return found


@dataclass
class Rows:
    """The rows that are still being searched; rows of the same point are adjacent.

    ``worst`` is the fooling iterate that is kept for a row with one (``hit``), and ``worst_loss`` its loss.
    ``share`` and ``sparsity`` are used in l1 only: the share of coordinates that a step changes, and how many
    coordinates the best perturbation changed at the last checkpoint.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    step: Tensor
    raised: Tensor
    last_best: Tensor
    reduced: Tensor
    hit: Tensor
    worst: Tensor
    worst_loss: Tensor
    share: Tensor
    sparsity: Tensor

    def keep(self, mask: Tensor) -> None:
        """Keep only the rows where ``mask`` is true."""
        kept = mask.nonzero().flatten()
        for name, value in vars(self).items():
            setattr(self, name, value[kept])


@dataclass
class AscentOutcome:
    """The result for each point: the perturbed point, whether it fools the model, and its loss."""

    x_adv: Tensor
    fooled: Tensor
    value: Tensor

    @classmethod
    def begin(cls, x: Tensor) -> AscentOutcome:
        """The outcome before any search: clean points, not fooled."""
        return cls(
            x.clone(),
            torch.zeros(len(x), dtype=torch.bool, device=x.device),
            torch.full((len(x),), -torch.inf, device=x.device),
        )

    def take(self, points: Tensor, other: AscentOutcome) -> None:
        """Keep the stronger result at each of ``points``: fooling before not fooling, then higher loss."""
        held, value = self.fooled[points], self.value[points]
        better = (other.fooled & ~held) | ((other.fooled == held) & (other.value > value))
        self.x_adv[points] = torch.where(per_sample(better), other.x_adv, self.x_adv[points])
        self.fooled[points] = held | other.fooled
        self.value[points] = torch.where(better, other.value, value)


def ascend(
    model: nn.Module, plan: AscentPlan, x: Tensor, y: Tensor, start: Tensor, target: Tensor
) -> AscentOutcome:
    """Run all phases of one search.

    Args:
        model: maps images to logits (R, K).
        plan: the settings of the search.
        x: points (P, C, H, W); ``y`` their labels (P,).
        start: (P·T, C, H, W) first iterates, the T of one point adjacent; ``target`` (P·T,) their classes.
    """
    attempts = len(start) // len(x)
    if attempts > 1:
        x, y = x.repeat_interleave(attempts, 0), y.repeat_interleave(attempts, 0)
    phases = plan.phases()
    for phase, following in pairwise(phases):
        run = AscentRun(model, phase, attempts)
        run.climb(x, y, project(start, x, phase.eps, plan.norm), target, warm=True)
        start = project(run.rows.best, x, following.eps, plan.norm)
    run = AscentRun(model, phases[-1], attempts)
    return run.climb(x, y, start, target, warm=len(phases) > 1)


class AscentRun:
    """One phase; each point has ``attempts`` adjacent rows, which early stop drops together."""

    rows: Rows

    def __init__(self, model: nn.Module, plan: AscentPlan, attempts: int) -> None:
        self.model, self.plan, self.attempts = model, plan, attempts
        self.index = torch.empty(0)
        self.pixels = 1

    def climb(self, x: Tensor, y: Tensor, start: Tensor, target: Tensor, *, warm: bool) -> AscentOutcome:
        """Run all steps from ``start``; ``warm`` if an earlier phase found that start."""
        plan, self.pixels = self.plan, x[0].numel()
        outcome = AscentOutcome.begin(x[:: self.attempts])
        self.index = torch.arange(len(outcome.value), device=x.device)
        self._begin(x, y, start, target, warm, outcome)
        sparse, since = plan.norm == "l1", 0
        every = max(int(0.04 * plan.steps), 1)
        judged = set(range(every, plan.steps + 1, every)) if sparse else checkpoints(plan.steps)
        for step in range(plan.steps):
            if not len(self.index):
                break
            if sparse:
                self._sparse_step()
            else:
                self._step(first=step == 0)
            self._look(outcome)
            since += 1
            if step + 1 in judged:
                if sparse:
                    self._adapt_sparsity()
                else:
                    self._adapt(plan.rho * since)
                since = 0
        self._conclude(outcome)
        return outcome

    def _begin(
        self, x: Tensor, y: Tensor, start: Tensor, target: Tensor, warm: bool, outcome: AscentOutcome
    ) -> None:
        gradient, logits, values = self._slope(start, y, target)
        zeros = torch.zeros_like(values)
        sparsity = _changed(start, x) if warm else zeros + self.pixels
        self.rows = Rows(
            x=x,
            y=y,
            target=target,
            x_adv=start,
            before=start,
            gradient=gradient,
            loss=values,
            best=start,
            best_loss=values,
            best_gradient=gradient,
            step=zeros + LONGEST[self.plan.norm] * self.plan.eps,
            raised=zeros.clone(),
            last_best=values,
            # True, so that the first checkpoint does not halve merely because the best loss is unchanged.
            reduced=torch.ones_like(zeros, dtype=torch.bool),
            hit=torch.zeros_like(zeros, dtype=torch.bool),
            worst=start,
            worst_loss=zeros - torch.inf,
            share=sparsity / self.pixels / SHRINK_SPARSE if warm else zeros + FIRST_SHARE,
            sparsity=sparsity,
        )
        self._judge(logits, outcome)

    def _slope(self, x_adv: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, logits and loss, averaged over ``eot_steps`` draws (for logits, their softmax)."""
        draws, loss = self.plan.eot_steps, self.plan.loss

        def look() -> tuple[Tensor, Tensor, Tensor]:
            return input_gradient(self.model, x_adv, y, lambda logits, labels: loss(logits, labels, target))

        gradient, logits, values = look()
        if draws > 1:
            logits = logits.float().softmax(1)
            for _ in range(draws - 1):
                more = look()
                gradient, values = gradient + more[0], values + more[2]
                logits = logits + more[1].float().softmax(1)
            gradient, logits, values = gradient / draws, logits / draws, values / draws
        return gradient, logits, torch.nan_to_num(values, nan=torch.inf)

    def _step(self, *, first: bool) -> None:
        rows, norm, eps = self.rows, self.plan.norm, self.plan.eps
        weight = 1.0 if first else MOMENTUM
        move = per_sample(rows.step) * steepest(rows.gradient, norm)
        z = project(rows.x_adv + move, rows.x, eps, norm)
        ahead = rows.x_adv + weight * (z - rows.x_adv) + (1 - weight) * (rows.x_adv - rows.before)
        rows.before, rows.x_adv = rows.x_adv, project(ahead, rows.x, eps, norm)

    def _sparse_step(self) -> None:
        """Take a step of l1 length η along the signs of the steepest coordinates."""
        rows = self.rows
        size = rows.gradient.abs().flatten(1)
        rank = ((1 - rows.share) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
        least = size.sort(1).values.gather(1, rank[:, None])
        signs = (rows.gradient.flatten(1).sign() * (size >= least)).view_as(rows.gradient)
        moved = per_sample(signs.abs().flatten(1).sum(1)).clamp_min(1)
        ahead = rows.x_adv + per_sample(rows.step) * signs / moved
        rows.x_adv = project(ahead, rows.x, self.plan.eps, "l1")

    def _look(self, outcome: AscentOutcome) -> None:
        """Compute loss and gradient at the new iterate; keep the best point and fooling ones."""
        rows = self.rows
        rows.gradient, logits, values = self._slope(rows.x_adv, rows.y, rows.target)
        rows.raised += values > rows.loss
        rows.loss = values
        better = values > rows.best_loss
        wide = per_sample(better)
        rows.best = torch.where(wide, rows.x_adv, rows.best)
        rows.best_gradient = torch.where(wide, rows.gradient, rows.best_gradient)
        rows.best_loss = torch.where(better, values, rows.best_loss)
        self._judge(logits, outcome)

    def _judge(self, logits: Tensor, outcome: AscentOutcome) -> None:
        """Determine which rows fool the model; with early stop, their points leave the search."""
        rows = self.rows
        if not self.plan.judged:
            return
        now = fooled(self.model, rows.x_adv, rows.y, logits)
        if not self.plan.early_stop:
            fresh = now & ~rows.hit
            gain = fresh if self.plan.first else fresh | (now & (rows.loss > rows.worst_loss))
            rows.worst = torch.where(per_sample(gain), rows.x_adv, rows.worst)
            rows.worst_loss = torch.where(gain, rows.loss, rows.worst_loss)
            rows.hit = rows.hit | now
        elif bool(now.any()):
            tries = now.view(-1, self.attempts)
            done = tries.any(1)
            chosen = torch.arange(len(tries), device=now.device) * self.attempts + tries.int().argmax(1)
            settled = self.index[done]
            outcome.x_adv[settled] = rows.x_adv[chosen[done]]
            outcome.fooled[settled], outcome.value[settled] = True, torch.inf
            self.index = self.index[~done]
            rows.keep((~done).repeat_interleave(self.attempts))

    def _adapt(self, needed: float) -> None:
        """Halve η and return to the best point where too few steps raised the loss (arXiv:2003.01690)."""
        rows = self.rows
        stalled = (rows.raised <= needed) | (~rows.reduced & (rows.last_best >= rows.best_loss))
        rows.reduced, rows.last_best = stalled, rows.best_loss
        rows.raised = torch.zeros_like(rows.raised)
        rows.step = torch.where(stalled, rows.step / 2, rows.step)
        self._return(stalled)

    def _adapt_sparsity(self) -> None:
        """Set the share of changed coordinates from the best point; reset η where that became sparser."""
        rows, longest = self.rows, LONGEST["l1"] * self.plan.eps
        changed = _changed(rows.best, rows.x)
        fell = changed < 0.95 * rows.sparsity
        rows.share, rows.sparsity = changed / self.pixels / SHRINK_SPARSE, changed
        shorter = (rows.step / SHRINK_SPARSE).clamp_min(SHORTEST_SPARSE * longest)
        rows.step = torch.where(fell, longest, shorter)
        self._return(fell)

    def _return(self, where: Tensor) -> None:
        rows, wide = self.rows, per_sample(where)
        rows.x_adv = torch.where(wide, rows.best, rows.x_adv)
        rows.gradient = torch.where(wide, rows.best_gradient, rows.gradient)

    def _conclude(self, outcome: AscentOutcome) -> None:
        """Choose among the attempts at each remaining point: fooling before not fooling, then by loss."""
        rows = self.rows
        if not len(self.index):
            return
        result = torch.where(per_sample(rows.hit), rows.worst, rows.best)
        settled = torch.full_like(rows.loss, torch.inf) if self.plan.first else rows.worst_loss
        value = torch.where(rows.hit, settled, rows.best_loss).view(-1, self.attempts)
        hit = rows.hit.view(-1, self.attempts)
        any_hit = hit.any(1)
        pick = torch.where(hit == any_hit[:, None], value, -torch.inf).argmax(1)
        chosen = torch.arange(len(pick), device=pick.device) * self.attempts + pick
        outcome.x_adv[self.index], outcome.fooled[self.index] = result[chosen], any_hit
        outcome.value[self.index] = value.gather(1, pick[:, None]).squeeze(1)


def _changed(x_adv: Tensor, x: Tensor) -> Tensor:
    """(R,) the number of values that differ."""
    return (x_adv != x).flatten(1).sum(1).float()
