"""RayS: searches for the direction of the nearest decision boundary, using only predicted labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import draw_seed, keyed_like, uniform
from attacks_pool.metadata import AttackInfo
from attacks_pool.norms import per_sample, project
from attacks_pool.registry import register
from attacks_pool.search.ascent import fooled

FRACTION = 1 / 8
"""Relative precision of a distance, per share of the image whose signs were flipped."""
FINEST = 1e-5
"""Absolute precision of distances, in image units."""


def _cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost: one forward pass per query."""
    return int(knobs["steps"]), 0


@register(
    AttackInfo(
        name="rays",
        family="query",
        norm="linf",
        access="black-box",
        paper="2006.12792",
        cost=_cost,
        knobs={"steps": metadata.steps(1000, training=50)},
    )
)
def rays(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """RayS, linf: flip blocks of signs of a direction d ∈ {−1, 1}^D wherever that brings the boundary nearer.

    Chen and Gu, arXiv:2006.12792: d starts at all ones; the blocks are the flattened image, its halves, its
    quarters and so on down to single values. A flip is kept if clip(x + r·d) is still misclassified at a
    smaller r than before, and r is then reduced along the new d. The attack uses only predicted classes, so
    gradients, the scale of the logits and their rounding have no effect. A step is one query; the first query
    is the clean point.

    Departures from the paper: the search along d takes growing steps before it bisects, and stops at a
    precision proportional to the size of the block, which saves queries. After the smallest blocks, a point
    starts again from random signs. Returns clip(x + min(r, eps)·d) for the smallest r found;
    ``early_stop`` ends the search of a point at r ≤ eps. Shapes as in :class:`attacks_pool.Attack`.
    """
    enough = eps if early_stop else 0.0
    best = torch.ones_like(x).flatten(1)
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    search = _Directions(x, generator)
    with torch.no_grad():
        nearest[fooled(model, x, y, model(x))] = 0.0
        for _ in range(steps - 1):
            search.keep(nearest[search.index] > enough)
            index = search.index
            if not len(index):
                break
            radius, signs = search.propose()
            tried = torch.addcmul(search.x, radius[:, None], signs).clamp_(0, 1).view(-1, *x.shape[1:])
            hit = fooled(model, tried, y[index], model(tried))
            nearer = hit & (radius < nearest[index])
            if bool(nearer.any()):
                nearest[index[nearer]], best[index[nearer]] = radius[nearer], signs[nearer]
            search.learn(hit, radius, signs)
    step = per_sample(nearest.clamp_max(eps)) * best.view_as(x)
    return project(x + step, x, eps, "linf")


class _Directions:
    """The state of the points ``index`` (n,) that are still being searched; each point has its own block.

    ``x`` and ``signs`` are (n, D). ``radius`` (n,) is the smallest distance at which x + radius·signs is
    known to be misclassified, infinite if there is none. Where ``measuring`` is true, the next query tries a
    smaller distance along the same signs: at distance ``low`` the prediction was right, and ``stride`` is the
    relative decrease to try. Elsewhere the next query flips the signs in block ``block``.
    """

    def __init__(self, x: Tensor, generator: torch.Generator) -> None:
        self.images, self.generator, self.base = x, generator, draw_seed(generator)
        self.x = x.flatten(1)
        self.signs = torch.ones_like(self.x)
        self.index = torch.arange(len(x), device=x.device)
        self.radius = self.x.new_full((len(x),), torch.inf)
        self.low, self.stride = torch.zeros_like(self.radius), torch.ones_like(self.radius)
        self.block, self.round = torch.zeros_like(self.index), torch.zeros_like(self.index)
        self.measuring = torch.zeros_like(self.index, dtype=torch.bool)
        self.first, self.end = blocks(self.x.shape[1]).to(x.device)
        # Block 0 is empty: its query measures the starting direction itself, with the coarsest precision.
        self.share = ((self.end - self.first) / self.x.shape[1]).to(x.dtype)
        self.share[0] = 1.0
        self.columns = torch.arange(self.x.shape[1], device=x.device)
        self.drawn: dict[int, Tensor] = {}

    def keep(self, mask: Tensor) -> None:
        """Keep only the points where ``mask`` (n,) is true."""
        if bool(mask.all()):
            return
        self.x, self.signs, self.index = self.x[mask], self.signs[mask], self.index[mask]
        self.radius, self.low, self.stride = self.radius[mask], self.low[mask], self.stride[mask]
        self.block, self.round = self.block[mask], self.round[mask]
        self.measuring = self.measuring[mask]

    def propose(self) -> tuple[Tensor, Tensor]:
        """The distances (n,) and directions (n, D) of the next queries."""
        first, end = self.first[self.block, None], self.end[self.block, None]
        inside = (self.columns >= first) & (self.columns < end) & ~self.measuring[:, None]
        closer = torch.maximum(self.radius * (1 - self.stride), (self.low + self.radius) / 2)
        # A flip must shorten the distance measurably. A distance of 1 reaches the whole box.
        flipped = (self.radius * (1 - FRACTION * self.share[self.block])).clamp_max(1.0)
        return torch.where(self.measuring, closer, flipped), torch.where(inside, -self.signs, self.signs)

    def learn(self, hit: Tensor, radius: Tensor, signs: Tensor) -> None:
        """Update the state, given which proposals were misclassified (``hit``), and choose the next query."""
        self.signs = torch.where(hit[:, None], signs, self.signs)
        self.radius = torch.where(hit, radius, self.radius)
        share = self.share[self.block]
        missed = torch.where(hit, self.low, radius)
        self.low = torch.where(self.measuring, missed, 0.0)
        self.stride = torch.where(self.measuring, 2 * self.stride, share)
        precise = self.radius - self.low <= FRACTION * share * self.radius + FINEST
        self.measuring = (self.measuring | hit) & ~precise
        self.block = self.block + (~self.measuring).long()
        over = self.block == len(self.first)
        if bool(over.any()):
            self._restart(over)

    def _restart(self, over: Tensor) -> None:
        """Start again from random signs where ``over`` (n,) is true.

        Signs are drawn for the whole batch, so a point's signs do not depend on which others remain.
        """
        for number in set(self.round[over].tolist()):
            if number not in self.drawn:
                draws = uniform(self.images, keyed_like(self.generator, self.base, number))
                self.drawn[number] = (draws >= 0.5).flatten(1)
            rows = over & (self.round == number)
            self.signs[rows] = self.drawn[number][self.index[rows]].to(self.signs.dtype) * 2 - 1
        self.radius[over], self.block[over] = torch.inf, 0
        self.round[over] += 1


def blocks(size: int) -> Tensor:
    """(2, B): starts and ends of an empty block, then of 1, 2, 4, … blocks that divide ``size`` values.

    The last level has blocks of one value.
    """
    bounds, parts, length = [(0, 0)], 1, size
    while True:
        bounds += [(first, min(first + length, size)) for first in range(0, size, length)]
        if length == 1:
            return torch.tensor(bounds).T
        parts *= 2
        length = math.ceil(size / parts)
