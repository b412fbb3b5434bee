"""Random search of the Square attack, for all its norms (Andriushchenko et al., arXiv:1912.00049).

A step changes one window of each image in place and reverts it if the loss does not improve. It touches only
the windows, so a step costs little more than the model's forward pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import PartGenerator, draw_seed, keyed_like
from attacks_pool.losses import margin
from attacks_pool.metadata import Knob
from attacks_pool.norms import per_sample
from attacks_pool.search.ascent import fooled

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULED = 10_000
"""Number of queries for which the paper defines its schedule."""
DRAWN = 2**18
"""How many random numbers to draw at once."""
KNOBS = {
    "steps": metadata.steps(1000, training=50),
    "restarts": metadata.restarts(),
    "p_init": Knob(0.8, "share of pixels changed by the first squares", high=1.0, open_low=True),
}
"""The knobs of the Square attack for all norms; a step is one query."""


def cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost: one forward pass per query."""
    return int(knobs["steps"]) * int(knobs["restarts"]), 0


class Change(Protocol):
    """A proposed change: the changed images ``tried`` (n, C, H, W), and how to undo it."""

    tried: Tensor

    def undo(self, where: Tensor) -> Tensor:
        """Return the images, with the rows of the mask ``where`` (n,) restored."""


class Squares(Protocol):
    """Places windows for one norm. All methods work on whole images (n, C, H, W)."""

    draws: int
    """How many numbers in [0, 1) a proposal needs per image."""

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the first perturbed images."""

    def propose(self, x: Tensor, x_adv: Tensor, share: float, draws: Tensor) -> Change:
        """Propose a change of ``x_adv``, which may be overwritten, from ``draws`` (n, :attr:`draws`).

        A window covers ``share`` of the pixels.
        """


class Written:
    """A window written into ``tried`` in place: its position, and old and new values (n, C, s²)."""

    def __init__(self, tried: Tensor, place: Tensor, before: Tensor, after: Tensor) -> None:
        self.tried, self.place, self.before, self.after = tried, place, before, after
        tried.flatten(2).scatter_(2, place, after)

    def undo(self, where: Tensor) -> Tensor:
        """Restore the old values of the window in place."""
        values = torch.where(where.view(-1, 1, 1), self.before, self.after)
        self.tried.flatten(2).scatter_(2, self.place, values)
        return self.tried


class Replaced:
    """A change of the whole image."""

    def __init__(self, tried: Tensor, before: Tensor) -> None:
        self.tried, self.before = tried, before

    def undo(self, where: Tensor) -> Tensor:
        """Return the old images in the rows ``where``."""
        return torch.where(per_sample(where), self.before, self.tried)


def random_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    squares: Squares,
    *,
    steps: int,
    restarts: int,
    p_init: float,
    generator: torch.Generator,
    early_stop: bool,
    rescale: bool = True,
) -> Tensor:
    """Change random windows and keep each change that raises the margin of the logits.

    Each point draws its own windows. They shrink on the paper's schedule for 10,000 queries, which
    ``rescale`` stretches or compresses to ``steps``.

    Returns:
        x_adv with the shape of ``x``; among restarts, the result of largest margin.
    """
    base, x = draw_seed(generator), x.contiguous()
    best, best_gap = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        for restart in range(restarts):
            draws = keyed_like(generator, base, restart)
            run = _Run(model, x, y, squares, early_stop)
            found, gap, done = run.search(active, steps, p_init, draws, steps if rescale else SCHEDULED)
            better = gap > best_gap[active]
            best[active[better]], best_gap[active[better]] = found[better], gap[better]
            if early_stop:
                active = active[~done]
            if not len(active):
                break
    return best


class _Run:
    """One restart of the search."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, squares: Squares, early_stop: bool) -> None:
        self.model, self.x, self.y = model, x, y
        self.squares, self.early_stop = squares, early_stop

    def search(
        self, points: Tensor, steps: int, p_init: float, generator: torch.Generator, scheduled: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images for ``points``, their margins and, with early stop, which certainly fool the model.

        Random numbers are drawn for the whole batch, so they do not depend on ``points``.
        """
        everyone = len(points) == len(self.x)
        x_adv = self.squares.start(self.x, generator)
        x_adv = x_adv if everyone else x_adv[points]
        x, y = (self.x, self.y) if everyone else (self.x[points], self.y[points])
        found, gaps = x_adv.clone(), torch.empty(len(points), device=x.device)
        done = torch.zeros(len(points), dtype=torch.bool, device=x.device)
        running, rows = torch.arange(len(points), device=x.device), points
        logits = self.model(x_adv)
        gap = _gap(logits, y)
        fresh, proposals = gap > 0, _numbers(len(self.x), self.squares.draws, steps - 1, generator)
        for step in range(1, steps + 1):
            if self.early_stop and bool(fresh.any()):
                sure = torch.zeros_like(fresh)
                sure[fresh] = fooled(self.model, x_adv[fresh], y[fresh], logits[fresh])
                if bool(sure.any()):
                    settled, keep = running[sure], (~sure).nonzero().flatten()
                    found[settled], gaps[settled], done[settled] = x_adv[sure], gap[sure], True
                    running, x, y, x_adv, gap = running[keep], x[keep], y[keep], x_adv[keep], gap[keep]
                    rows = points[running]
            if step == steps or not len(running):
                break
            draws = next(proposals).to(x.device)
            draws = draws if len(rows) == len(self.x) else draws[rows]
            change = self.squares.propose(x, x_adv, _share(p_init, step, scheduled), draws)
            logits = self.model(change.tried)
            new_gap = _gap(logits, y)
            better = new_gap > gap
            x_adv = change.undo(~better)
            gap = torch.where(better, new_gap, gap)
            fresh = better & (new_gap > 0)
        found[running], gaps[running] = x_adv, gap
        return found, gaps, done


def _numbers(rows: int, columns: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Uniform numbers (rows, columns) for each step, drawn for many steps at a time."""
    part = generator if isinstance(generator, PartGenerator) else None
    everyone = rows if part is None else part.total
    at_once = max(1, DRAWN // max(everyone * columns, 1))
    for begin in range(0, steps, at_once):
        count = min(at_once, steps - begin)
        numbers = torch.rand(count, everyone, columns, generator=generator, device=generator.device)
        yield from numbers if part is None else numbers[:, part.rows]


def _gap(logits: Tensor, y: Tensor) -> Tensor:
    """The margin, positive where the model is fooled; NaN counts as fooled."""
    return torch.nan_to_num(margin(logits, y), nan=torch.inf)


def _share(p_init: float, step: int, scheduled: int) -> float:
    """Share of pixels in a window; it halves on the paper's schedule, stretched to ``scheduled`` queries."""
    progress = int(step / scheduled * SCHEDULED)
    return p_init / 2.0 ** sum(progress > bound for bound in HALVINGS)


def side(share: float, height: int, width: int) -> int:
    """Side of a square window, at most one pixel shorter than the image."""
    return max(1, min(round(math.sqrt(share * height * width)), height - 1, width - 1))


def odd_side(share: float, height: int, width: int) -> int:
    """Odd side of at least 3, or less if the image is smaller."""
    return min(max(round(math.sqrt(share * height * width)), 3) | 1, height, width)


def window(shape: torch.Size, size: int, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Indices (n, C, size²) of windows in images flattened to (n, C, H·W), from two draws (n,) in [0, 1)."""
    rows, channels, height, width = shape
    top, left = (vertical * (height - size + 1)).long(), (horizontal * (width - size + 1)).long()
    place = (top * width + left)[:, None] + _offsets(size, width, vertical.device)
    return place[:, None].expand(rows, channels, size * size)


@functools.cache
def _offsets(size: int, width: int, device: torch.device) -> Tensor:
    """(size²,) offsets of a window's pixels from its first pixel, in an image flattened row by row."""
    reach = torch.arange(size, device=device)
    return (reach[:, None] * width + reach).flatten()
