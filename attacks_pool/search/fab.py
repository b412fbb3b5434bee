"""Search of the fast adaptive boundary attack (FAB), for all norms, targeted or not (arXiv:1907.02044)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.randomness import draw_seed, keyed_like, normal, uniform
from attacks_pool.norms import per_sample
from attacks_pool.search.ascent import fooled
from attacks_pool.search.boundary import Smallest, length, nearest_plane, rivals

NEWTON_STEPS = 24
BEYOND = 1e30


def step_to_hyperplane(x: Tensor, w: Tensor, gain: Tensor, norm: str) -> Tensor:
    """The shortest d with ⟨w, d⟩ = gain and x + d in [0, 1], in l_∞, l_2 or l_1.

    If the box is too small for that gain, d goes to the corner of largest ⟨w, d⟩; a zero ``w`` gives d = 0.

    Args:
        x: points (M, D) in [0, 1]; ``w`` (M, D) normals; ``gain`` (M,), positive or negative.
        norm: ``linf``, ``l2`` or ``l1``.

    Returns:
        (M, D).
    """
    size = w.abs()
    largest = size.amax(1, keepdim=True).clamp_min(1e-38)
    size = size / largest
    direction = (w * torch.where(gain < 0, -1.0, 1.0)[:, None]).sign()
    room = (direction.clamp_min(0) - x).abs()
    gain = gain.abs() / largest.squeeze(1)
    if norm == "l1":
        return direction * _greedy(size, room, gain)
    if norm == "linf":
        return direction * torch.minimum(_level(size, room, size * room, gain), room)
    breaks = room / size.clamp_min(1e-38)
    return direction * torch.minimum(_level(size.square(), breaks, size * room, gain) * size, room)


def _level(slopes: Tensor, breaks: Tensor, worth: Tensor, gain: Tensor) -> Tensor:
    """t (M, 1) at which the sum of the pieces min(slope · t, worth) equals ``gain``.

    A piece rises until t reaches its break. The sum is concave and piecewise linear, so Newton's method from
    the left never overshoots and ends on the piece of the root. A converged row no longer changes, so the
    result of a row does not depend on the others.
    """
    # If the gain is out of reach, every piece goes to its break.
    short = gain >= worth.sum(1)
    level = torch.where(short, BEYOND, gain / slopes.sum(1).clamp_min(1e-38))
    for _ in range(NEWTON_STEPS):
        rising = (breaks > level[:, None]).to(slopes.dtype)
        slope = torch.linalg.vecdot(slopes, rising)
        missing = gain - torch.linalg.vecdot(worth, 1 - rising)
        ahead = missing / slope.clamp_min(1e-38)
        moving = (ahead > level * (1 + 1e-6)) & (slope > 0) & ~short
        if not moving.any():
            break
        level = torch.where(moving, ahead, level)
    return level[:, None]


def _greedy(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """Step lengths that use the room of the pixels with largest ``size`` first, until ``gain`` is reached."""
    size, order = size.sort(dim=1, descending=True)
    room = room.gather(1, order)
    worth = size * room
    before = worth.cumsum(1) - worth
    share = ((gain[:, None] - before) / worth.clamp_min(1e-38)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room)


SMALLEST_CALL = 128
"""The model is called on at most this many rows, or on the batch's size if larger; targets multiply rows."""
PATIENCE = 2
"""Number of consecutive steps without crossing after which a row is expected not to cross again."""


@dataclass
class _Rows:
    """One row per point and group of candidate classes.

    ``known``: ``gap`` and ``plane`` are valid at ``x_adv``; ``missed``: steps since the last crossing.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    classes: Tensor
    x_adv: Tensor
    gap: Tensor
    plane: Tensor
    known: Tensor
    missed: Tensor

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


@dataclass(frozen=True)
class BoundarySearch:
    """FAB with its published constants: the weight of the clean point, overshoot and backward step."""

    norm: str
    eps: float
    alpha_max: float
    eta: float
    beta: float

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        steps: int,
        restarts: int,
        targets: int | None,
        generator: torch.Generator,
        early_stop: bool,
    ) -> Tensor:
        """Return x_adv like ``x``; tries the ``targets`` likeliest classes separately, or all at once (None).

        All targets of all points form one batch. With ``early_stop``, one success within eps ends the search
        of the point for all its targets.
        """
        base = draw_seed(generator)
        with torch.no_grad():
            logits = model(x)
        right = torch.nonzero(~fooled(model, x, y, logits)).flatten()
        classes = rivals(logits, y, logits.shape[1] if targets is None else targets)
        # (N, R, J): each point has R rows, each with J classes.
        classes = classes[:, None, :] if targets is None else classes[:, :, None]
        count = classes.shape[1]
        found = Smallest(x.repeat_interleave(count, 0), self.norm)
        points = torch.arange(len(x), device=x.device).repeat_interleave(count)
        active = torch.isin(points, right)
        for restart in range(restarts):
            start = found.x if restart == 0 else self._start(found.x, keyed_like(generator, base, restart))
            rows = _begin(found.x, y[points], classes.flatten(0, 1), start, active)
            self._search(model, rows, found, steps, count if early_stop else None, max(len(x), SMALLEST_CALL))
            if early_stop:
                active = active & (found.size.view(-1, count).amin(1) > self.eps)[points]
            if not active.any():
                break
        pick = found.size.view(-1, count).argmin(1) + count * torch.arange(len(x), device=x.device)
        return found.best[pick]

    def _start(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Start at a distance of eps / 2 from ``x``, in a random direction."""
        way = uniform(x, draws, -1.0, 1.0) if self.norm == "linf" else normal(x, draws)
        way = way / per_sample(length(way, self.norm)).clamp_min(1e-12)
        return (x + 0.5 * self.eps * way).clamp(0, 1)

    def _search(
        self, model: nn.Module, rows: _Rows, found: Smallest, steps: int, group: int | None, call: int
    ) -> None:
        """One restart; if ``group`` is given, one success within eps ends all ``group`` rows of its point."""
        for step in range(steps):
            if group is not None:
                enough = found.size.view(-1, group).amin(1) <= self.eps
                rows.keep(~enough.repeat_interleave(group)[rows.index])
            if not len(rows.index):
                return
            _look(model, rows, ~rows.known, torch.zeros_like(rows.known), self.norm, call)
            rows.x_adv = self._step(rows)
            # Most iterates cross the boundary and move back, so their gradient would be wasted. It is
            # computed together with the logits only for rows that keep missing the boundary.
            taken = (rows.missed >= PATIENCE) & (step + 1 < steps)
            logits = _look(model, rows, taken, ~taken, self.norm, call)
            within = math.inf if group is None else self.eps
            crossed = found.record(model, rows.index, rows.x_adv, rows.y, logits, within)
            rows.known = taken & ~crossed
            rows.missed = torch.where(crossed, 0, rows.missed + 1)
            back = rows.x + self.beta * (rows.x_adv - rows.x)
            rows.x_adv = torch.where(per_sample(crossed), back, rows.x_adv)

    def _step(self, rows: _Rows) -> Tensor:
        """(1 − α)(x_k + η·d_k) + α(x + η·d), with d_k and d the steps from iterate and clean point."""
        x_adv, x, plane = rows.x_adv.flatten(1), rows.x.flatten(1), rows.plane.flatten(1)
        way = step_to_hyperplane(x_adv, plane, -rows.gap, self.norm)
        gain = torch.linalg.vecdot(plane, x_adv - x) - rows.gap
        way_from_clean = step_to_hyperplane(x, plane, gain, self.norm)
        near = length(way, self.norm).clamp_min(1e-8)
        far = length(way_from_clean, self.norm).clamp_min(1e-8)
        alpha = (near / (near + far)).clamp_max(self.alpha_max)[:, None]
        mixed = (1 - alpha) * (x_adv + self.eta * way) + alpha * (x + self.eta * way_from_clean)
        return mixed.clamp(0, 1).view_as(rows.x)


def _begin(x: Tensor, y: Tensor, classes: Tensor, start: Tensor, active: Tensor) -> _Rows:
    index = torch.nonzero(active).flatten()
    nothing = torch.zeros(len(index), device=x.device)
    x, start = x[index], start[index]
    return _Rows(
        index, x, y[index], classes[index], start, nothing, x.clone(), nothing.bool(), nothing.long()
    )


def _look(model: nn.Module, rows: _Rows, plane: Tensor, plain: Tensor, norm: str, call: int) -> Tensor:
    """Logits at the iterates of rows ``plane`` and ``plain``; sets gap and gradient of rows ``plane``."""
    seen, logits = [], []
    for part in torch.split(torch.nonzero(plane).flatten(), call):
        if len(part):
            x, y, classes = rows.x_adv[part], rows.y[part], rows.classes[part]
            rows.gap[part], rows.plane[part], scores = nearest_plane(model, x, y, classes, norm)
            seen.append(part)
            logits.append(scores)
    for part in torch.split(torch.nonzero(plain).flatten(), call):
        if len(part):
            with torch.no_grad():
                logits.append(model(rows.x_adv[part]))
            seen.append(part)
    if not seen:  # all iterates are known already
        return rows.gap.new_zeros(0, 1)
    scores = torch.cat(logits)
    return scores.new_zeros(len(plane), scores.shape[1]).index_copy_(0, torch.cat(seen), scores)


def passes(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:
    """Cost: at most 2 forward passes per step and row; one gradient per step, one wasted per two misses."""
    steps, runs = int(knobs["steps"]), int(knobs["restarts"])
    gradients = steps + steps // (PATIENCE + 1)
    if "targets" in knobs:
        rows = min(int(knobs["targets"]), classes - 1)
        return 1 + 2 * steps * runs * rows, gradients * runs * rows
    return 1 + 2 * steps * runs, gradients * runs * (classes - 1)
