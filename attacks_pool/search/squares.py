"""Square attack's random search, shared by its norms (Andriushchenko et al., arXiv:1912.00049).

A step changes a window of each image. It is written into the image in place and taken back where it did not
help, so a step touches the windows alone and costs little more than the model's forward pass.
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
"""Queries that the paper's schedule of halvings is written for."""
DRAWN = 2**18
"""Numbers drawn at once."""
KNOBS = {
    "steps": metadata.steps(1000, training=50),
    "restarts": metadata.restarts(),
    "p_init": Knob(0.8, "share of pixels changed by the first squares", high=1.0, open_low=True),
}
"""The knobs of Square attack in any norm; a step is one query."""


def cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """One forward pass a query."""
    return int(knobs["steps"]) * int(knobs["restarts"]), 0


class Change(Protocol):
    """A proposal: the images ``tried`` (n, C, H, W), and the way back."""

    tried: Tensor

    def undo(self, where: Tensor) -> Tensor:
        """The images, with the rows ``where`` (n,) as they were before."""


class Squares(Protocol):
    """How a norm places its windows. Every method works on rows of whole images, (n, C, H, W)."""

    draws: int
    """Numbers in [0, 1) that a proposal needs of each row."""

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The first perturbed images."""

    def propose(self, x: Tensor, x_adv: Tensor, share: float, draws: Tensor) -> Change:
        """A change of ``x_adv``, which it may overwrite, from ``draws`` (n, :attr:`draws`).

        ``share`` of the pixels is in a window.
        """


class Written:
    """A window written into ``tried`` in place: where, and its values before and after, (n, C, s²)."""

    def __init__(self, tried: Tensor, place: Tensor, before: Tensor, after: Tensor) -> None:
        self.tried, self.place, self.before, self.after = tried, place, before, after
        tried.flatten(2).scatter_(2, place, after)

    def undo(self, where: Tensor) -> Tensor:
        """The window's values put back, in place."""
        values = torch.where(where.view(-1, 1, 1), self.before, self.after)
        self.tried.flatten(2).scatter_(2, self.place, values)
        return self.tried


class Replaced:
    """The whole image changed."""

    def __init__(self, tried: Tensor, before: Tensor) -> None:
        self.tried, self.before = tried, before

    def undo(self, where: Tensor) -> Tensor:
        """The old images, where wanted."""
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
    """Keeps a random window whenever it raises the margin of the logits; each point draws its own.

    Windows shrink on the paper's schedule for 10,000 queries, stretched over the ``steps`` unless
    ``rescale`` is off.

    Returns:
        x_adv like ``x``: of several restarts the one of largest margin.
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
    """One restart."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, squares: Squares, early_stop: bool) -> None:
        self.model, self.x, self.y = model, x, y
        self.squares, self.early_stop = squares, early_stop

    def search(
        self, points: Tensor, steps: int, p_init: float, generator: torch.Generator, scheduled: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The images of ``points``, their margins, and (with early stop) which fool the model for certain.

        Draws are made for the whole batch, so none depends on which points are searched.
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
    """(rows, columns) uniform numbers for each step, drawn many steps at a time."""
    part = generator if isinstance(generator, PartGenerator) else None
    everyone = rows if part is None else part.total
    at_once = max(1, DRAWN // max(everyone * columns, 1))
    for begin in range(0, steps, at_once):
        count = min(at_once, steps - begin)
        numbers = torch.rand(count, everyone, columns, generator=generator, device=generator.device)
        yield from numbers if part is None else numbers[:, part.rows]


def _gap(logits: Tensor, y: Tensor) -> Tensor:
    """The margin, positive where the model is fooled; scores that are not numbers count as fooled."""
    return torch.nan_to_num(margin(logits, y), nan=torch.inf)


def _share(p_init: float, step: int, scheduled: int) -> float:
    """The share of pixels in a window; it halves on the paper's schedule, ``scheduled`` queries long."""
    progress = int(step / scheduled * SCHEDULED)
    return p_init / 2.0 ** sum(progress > bound for bound in HALVINGS)


def side(share: float, height: int, width: int) -> int:
    """The side of a square window, shorter than the image."""
    return max(1, min(round(math.sqrt(share * height * width)), height - 1, width - 1))


def odd_side(share: float, height: int, width: int) -> int:
    """An odd side of at least 3, unless the image is smaller."""
    return min(max(round(math.sqrt(share * height * width)), 3) | 1, height, width)


def window(shape: torch.Size, size: int, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Where windows lie in images flattened to (n, C, H·W): (n, C, size²), for two draws (n,) in [0, 1)."""
    rows, channels, height, width = shape
    top, left = (vertical * (height - size + 1)).long(), (horizontal * (width - size + 1)).long()
    place = (top * width + left)[:, None] + _offsets(size, width, vertical.device)
    return place[:, None].expand(rows, channels, size * size)


@functools.cache
def _offsets(size: int, width: int, device: torch.device) -> Tensor:
    """(size²,) how far the pixels of a window lie behind its first one, in an image flattened by rows."""
    reach = torch.arange(size, device=device)
    return (reach[:, None] * width + reach).flatten()
