"""A pool of chosen training images, and a stage's batches of them in place of the whole data set's."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence, Sized

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks_pool.calling.randomness import keyed_generator
from defenses.training.stage import Batches

Pairs = list[tuple[Tensor, Tensor]]


class PoolBatches:
    """The batches of ``data`` until a pool is chosen, then as many batches of the same sizes from the pool.

    Every epoch walks through whole permutations of the pool. A batch depends only on the pool, the seed, the
    epoch and its number, so that a resumed stage has the batches of an uninterrupted one.

    Args:
        data: the clean batches of the stage.
        seed: determines the permutations.
    """

    def __init__(self, data: Batches, seed: int) -> None:
        self.data, self.seed = data, seed
        self.epoch = 0
        self.sizes: list[int] = []
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    def __len__(self) -> int:
        if self.sizes:
            return len(self.sizes)
        return len(self.data) if isinstance(self.data, Sized) else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutations of an epoch, of the pool and of the data."""
        self.epoch = epoch
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)

    def choose(self, x: Tensor, y: Tensor, sizes: Sequence[int]) -> None:
        """Take the pool's images (B, C, H, W) and labels (B,), and the sizes of an epoch's batches."""
        self.x, self.y, self.sizes = x, y, list(sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.x is None:
            yield from self.data
            return
        start = 0
        for size in self.sizes:
            # The pool may have grown since the last batch.
            x, y = self.x, self.y
            assert y is not None
            rows = self._rows(start, start + size, len(y))
            yield x[rows], y[rows]
            start += size

    def _rows(self, start: int, stop: int, size: int) -> Tensor:
        """The rows of the pool at the places ``start`` to ``stop`` of an epoch."""
        turns = range(start // size, (stop - 1) // size + 1)
        orders = [
            torch.randperm(size, generator=keyed_generator("pool", self.seed, self.epoch, t)) for t in turns
        ]
        first = start - turns[0] * size
        return torch.cat(orders)[first : first + stop - start]


def keys_of(x: Tensor) -> list[bytes]:
    """A digest of each image (N, C, H, W), by which it is found again in another order of the data."""
    return [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in x.cpu().numpy()]


def gathered(batches: Iterator[tuple[Tensor, Tensor]], wanted: Collection[bytes]) -> tuple[Tensor, Tensor]:
    """The images with these digests and their labels, each image once, in the order of the digests."""
    found: dict[bytes, tuple[Tensor, Tensor]] = {}
    rows = set(wanted)
    for x, y in batches:
        for key, image, label in zip(keys_of(x), x, y, strict=True):
            if key in rows and key not in found:
                found[key] = (image.cpu().clone(), label.cpu().clone())
    images, labels = zip(*(found[key] for key in wanted), strict=True)
    return torch.stack(images), torch.stack(labels)


def sparseness(e: NDArray[np.float64], cells: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The distance of each point (N, D) to its k-th neighbour in its own cell.

    Of a cell with fewer neighbours the furthest counts; a point that is alone in its cell has 0.
    """
    from sklearn.neighbors import NearestNeighbors

    found = np.zeros(len(e))
    for cell in np.unique(cells):
        mine = np.flatnonzero(cells == cell)
        near = min(k, len(mine) - 1)
        if near:
            search = NearestNeighbors(n_neighbors=near + 1).fit(e[mine])
            found[mine] = search.kneighbors(e[mine])[0][:, near]
    return found


def outliers(r: NDArray[np.float64]) -> NDArray[np.bool_]:
    """r > Q3 + 1.5 · (Q3 − Q1)."""
    low, high = np.quantile(r, [0.25, 0.75])
    return np.asarray(r > high + 1.5 * (high - low))


def spread(
    r: NDArray[np.float64], cells: NDArray[np.int64], left_out: NDArray[np.bool_], count: int, seed: int
) -> list[int]:
    """``count`` points, equally many of each cell, of a cell those with the largest log r + Gumbel noise.

    Cells take turns until they have no more points. Points left out are taken last, if others are too few.
    """
    draws = np.random.default_rng(seed).gumbel(size=len(r))
    keys = np.log(np.maximum(r, 1e-12)) + draws
    chosen: list[int] = []
    for group in (np.flatnonzero(~left_out), np.flatnonzero(left_out)):
        ordered = group[np.argsort(-keys[group], kind="stable")]
        places: dict[int, int] = {}
        turns = []
        for point in ordered:
            cell = int(cells[point])
            turns.append((places.get(cell, 0), cell, int(point)))
            places[cell] = places.get(cell, 0) + 1
        chosen += [point for _, _, point in sorted(turns)][: count - len(chosen)]
    return chosen
