"""Batches of a split: of images that are in memory, or streamed from files by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from advbench.data.pixels import Pixels
from advbench.data.sets import Split
from advbench.data.stream import streamed
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.errors import InputError


class TensorLoader:
    """A re-iterable of batches ``(x, y)``: ``x`` float32 (B, C, H, W), ``y`` int64 (B,).

    The order of an epoch depends only on ``(seed, epoch)``, not on the device, the batch size or the global
    random state. Each new iteration is the next epoch, starting from 0, unless ``set_epoch`` changes it.

    The last batch may be smaller than the others, except that a single point joins the batch before it, since
    batch normalisation cannot train on one point.

    Args:
        split: The points; they are moved to ``device`` once.
        batch_size: The points per batch.
        seed: The key of the shuffles.
        shuffle: If false, every epoch is in the order of ``split``.
        device: The device of the batches; None leaves ``split`` where it is.
        workers: Processes that decode images which are not in memory; by default one on a CPU, and up to
            eight, one less than there are cores, beside a GPU. 0 decodes in this process.

    Raises:
        InputError: ``split`` is empty or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        device: torch.device | str | None = None,
        workers: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} is not a positive number")
        if len(split) == 0:
            raise InputError("there are no points to load: the split is empty")
        self.split = split if device is None else split.to(device)
        self.workers = workers
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration epoch ``epoch``, for resuming; later iterations count on from there."""
        self._epoch = epoch

    def __len__(self) -> int:
        """The number of batches per epoch."""
        return len(self._bounds()) - 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # This is not a generator: the epoch must advance when iteration starts, not at the first batch.
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._batches(self._order(epoch) if self.shuffle else None)

    def parts(self, part_of: Callable[[int], slice]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The next epoch's batches for one of several processes: a part of each, and the whole batch's size.

        Args:
            part_of: the rows to read, as a slice, of a batch of the given size.
        """
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._parts(epoch, part_of)

    def _parts(self, epoch: int, part_of: Callable[[int], slice]) -> Iterator[tuple[Tensor, Tensor, int]]:
        sizes = [stop - start for start, stop in pairwise(self._bounds())]
        batches = self._batches(self._order(epoch) if self.shuffle else None, part_of)
        for (x, y), size in zip(batches, sizes, strict=True):
            yield x, y, size

    def _batches(
        self, order: Tensor | None, part_of: Callable[[int], slice] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images, y = self.split.images, self.split.y
        parts = [slice(start, stop) for start, stop in pairwise(self._bounds())]
        if part_of is not None:
            mine = [part_of(part.stop - part.start) for part in parts]
            parts = [
                slice(all_.start + some.start, all_.start + some.stop)
                for all_, some in zip(parts, mine, strict=True)
            ]
        rows: Sequence[slice | Tensor] = parts if order is None else [order[part] for part in parts]
        if isinstance(images, Pixels) and not images.resident:
            decoded = streamed(images, rows, self.workers)
        else:
            decoded = (images[some] for some in rows)
        for some, x in zip(rows, decoded, strict=True):
            yield x, y[some]

    def _bounds(self) -> list[int]:
        n = len(self.split)
        starts = list(range(0, n, self.batch_size))
        if self.batch_size > 1 and len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()
        return [*starts, n]

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.split), generator=keyed_generator("epoch", self.seed, epoch)).to(
            self.split.y.device
        )
