"""Square attack: random search with square patches."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.randomness import uniform
from attacks_pool.metadata import AttackInfo
from attacks_pool.norms import per_sample, project
from attacks_pool.registry import register
from attacks_pool.search.squares import (
    KNOBS,
    Change,
    Replaced,
    Written,
    cost,
    odd_side,
    random_search,
    side,
    window,
)


@register(
    AttackInfo(
        name="square",
        family="query",
        norm="linf",
        access="black-box",
        paper="1912.00049",
        reduced_precision=False,
        cost=cost,
        knobs=KNOBS,
    )
)
def square(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **knobs: Any) -> Tensor:
    """Square attack, linf: tries random ±eps squares and keeps each one that raises the margin.

    Andriushchenko et al., arXiv:1912.00049, with the margin loss; it uses only logits. A step is one query.
    Each point draws its own squares. Shapes as in :class:`attacks_pool.Attack`.
    """
    return random_search(model, x, y, Corners(eps, x.shape[1]), **knobs)


@register(
    AttackInfo(
        name="square-l2",
        family="query",
        norm="l2",
        access="black-box",
        paper="1912.00049",
        reduced_precision=False,
        cost=cost,
        knobs=KNOBS,
    )
)
def square_l2(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **knobs: Any) -> Tensor:
    """Square attack, l2: moves perturbation from one window to another, in the shape of two pyramids.

    Andriushchenko et al., arXiv:1912.00049, with the margin loss. A step is one query. Each point draws its
    own windows. Shapes as in :class:`attacks_pool.Attack`.
    """
    return random_search(model, x, y, Pyramids("l2", eps, x.shape[1]), **knobs)


@register(
    AttackInfo(
        name="square-l1",
        family="query",
        norm="l1",
        access="black-box",
        paper="2103.01208",
        reduced_precision=False,
        cost=cost,
        knobs=KNOBS,
    )
)
def square_l1(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, **knobs: Any) -> Tensor:
    """Square attack, l1: like l2, with steeper pyramids, then the exact projection onto ball and box.

    Croce and Hein, arXiv:2103.01208, with the margin loss. A step is one query. Each point draws its own
    windows. Shapes as in :class:`attacks_pool.Attack`.
    """
    return random_search(model, x, y, Pyramids("l1", eps, x.shape[1]), **knobs)


class Corners:
    """Sets windows to a corner of the linf ball, with one sign per channel; starts with stripes."""

    def __init__(self, eps: float, channels: int) -> None:
        self.eps, self.draws = eps, channels + 2

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return images with vertical stripes of ±eps."""
        stripes = uniform(x[:, :, :1, :], generator).sub(0.5).sign()
        return project(x + self.eps * stripes, x, self.eps, "linf")

    def propose(self, x: Tensor, x_adv: Tensor, share: float, draws: Tensor) -> Change:
        """Change one window per image; flip the sign if the window already has these values."""
        size = side(share, *x.shape[2:])
        place = window(x.shape, size, draws[:, 0], draws[:, 1])
        clean, before = x.flatten(2).gather(2, place), x_adv.flatten(2).gather(2, place)
        move = self.eps * (draws[:, 2:] - 0.5).sign()[:, :, None]
        after = (clean + move).clamp(0, 1)
        same = (after == before).flatten(1).all(1).view(-1, 1, 1)
        after = torch.where(same, (clean - move).clamp(0, 1), after)
        return Written(x_adv, place, before, after)


class Pyramids:
    """Fills windows with two pyramids of opposite signs; the norm freed in one window goes to another."""

    def __init__(self, norm: str, eps: float, channels: int) -> None:
        self.norm, self.eps, self.channels, self.draws = norm, eps, channels, channels + 5
        self.power = 2 if norm == "l2" else 1
        self._shapes: dict[int, Tensor] = {}

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Fill five windows along the shorter side, each with its own signs and orientation."""
        rows, channels, height, width = x.shape
        size = max(min(height, width) // 5, 1)
        down, across = height // size, width // size
        tiles = uniform(x.new_empty(rows, down * across, channels + 1), generator)
        signs = (tiles[:, :, 1:] - 0.5).sign()[..., None]
        values = self._shape(size, tiles[:, :, 0])[:, :, None] * signs
        grid = values.view(rows, down, across, channels, size, size).permute(0, 3, 1, 4, 2, 5)
        delta, top, left = torch.zeros_like(x), (height - down * size) // 2, (width - across * size) // 2
        delta[:, :, top : top + down * size, left : left + across * size] = grid.reshape(
            rows, channels, down * size, across * size
        )
        return self._bound(x, delta, exact=True)

    def propose(self, x: Tensor, x_adv: Tensor, share: float, draws: Tensor) -> Change:
        """Empty two windows and fill the first one with as much norm as the budget allows."""
        delta, size = x_adv - x, odd_side(share, *x.shape[2:])
        flat = delta.flatten(2)
        first = window(x.shape, size, draws[:, 0], draws[:, 1])
        second = window(x.shape, size, draws[:, 2], draws[:, 3])
        unused = (self.eps**self.power - self._mass(delta.flatten(1))).clamp_min(0).view(-1, 1, 1)
        before = flat.gather(2, first)
        old = self._mass(before)
        flat.scatter_(2, first, 0.0)
        allowed = unused / self.channels + old + self._mass(flat.gather(2, second))
        flat.scatter_(2, second, 0.0)
        signs = (draws[:, 5:] - 0.5).sign()[:, :, None]
        new = self._shape(size, draws[:, 4])[:, None] * signs + before / self._root(old).clamp_min(1e-12)
        # In l1, the published search gives each channel the norm of all channels, then projects.
        length = self._root(allowed) if self.norm == "l2" else allowed * self.channels
        flat.scatter_(2, first, new / self._root(self._mass(new)).clamp_min(1e-12) * length)
        return Replaced(self._bound(x, delta, exact=self.channels > 1), x_adv)

    def _bound(self, x: Tensor, delta: Tensor, *, exact: bool) -> Tensor:
        """Move images into ball and box; unless ``exact``, an l1 perturbation is already in the ball."""
        if self.norm == "l2":
            length = self._root(self._mass(delta.flatten(1))).clamp_min(1e-12).flatten()
            return (x + delta * per_sample(self.eps / length)).clamp(0, 1)
        return project(x + delta, x, self.eps * (1 - 1e-6), "l1") if exact else (x + delta).clamp(0, 1)

    def _mass(self, values: Tensor) -> Tensor:
        """Σ|v|^p over the last dimension, which is kept."""
        size = values.square() if self.power == 2 else values.abs()
        return size.sum(-1, keepdim=True)

    def _root(self, mass: Tensor) -> Tensor:
        return mass.sqrt() if self.power == 2 else mass

    def _shape(self, size: int, draws: Tensor) -> Tensor:
        """(…, size²) pyramids of norm 1: upright for draws (…,) below ½, otherwise rotated."""
        if size not in self._shapes:
            upright = pyramids(size, self.power)
            both = torch.stack([upright, upright.T]).flatten(1)
            self._shapes[size] = (both / self._root(self._mass(both))).to(draws.device, draws.dtype)
        return self._shapes[size][(draws >= 0.5).long()]


def pyramids(size: int, order: int) -> Tensor:
    """(size, size): a pyramid in the upper half and its negative in the lower, each of norm 1 in l_order.

    At r steps from the middle of a half, the height is proportional to Σ_{k>r} k^−2, in l1 to Σ_{k>r} k^−4,
    with k up to half of its longer side.
    """
    halves = []
    for rows in (size // 2, size - size // 2):
        middle = (rows // 2, size // 2)
        down = (torch.arange(rows) - middle[0]).abs()
        across = (torch.arange(size) - middle[1]).abs()
        ring = torch.maximum(down[:, None], across[None])
        top = max(rows, size) // 2 + 1
        heights = [
            math.fsum(k ** (-2 if order == 2 else -4) for k in range(r + 1, top + 1)) for r in range(top + 1)
        ]
        half = torch.tensor(heights)[ring]
        halves.append(half / half.norm(p=order).clamp_min(1e-12))
    return torch.cat([halves[0], -halves[1]])
