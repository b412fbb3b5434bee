"""Reads batches of images ahead in worker processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advbench.data.pixels import Pixels, Rows
from attacks_pool.errors import InputError

MOST_WORKERS = 8
AHEAD = 4
"""Batches that each worker reads ahead."""


def default_workers(device: torch.device) -> int:
    """Worker processes for images that are not in memory."""
    return 1 if device.type == "cpu" else max(1, min(MOST_WORKERS, (os.cpu_count() or 2) - 1))


def streamed(images: Pixels, batches: Sequence[Rows], workers: int | None = None) -> Iterator[Tensor]:
    """The images of each batch, float32 (B, C, H, W) on the device of ``images``, in the order given.

    Args:
        images: the images; their source is copied to the workers.
        batches: the rows of each batch.
        workers: processes; None chooses their number, 0 reads in this process.

    Raises:
        InputError: an image cannot be read.
    """
    count = default_workers(images.device) if workers is None else workers
    loader: Any = DataLoader(
        _Stored(images),
        batch_size=None,
        sampler=_plain(batches),
        num_workers=count,
        prefetch_factor=AHEAD if count else None,
        worker_init_fn=_begin,
        pin_memory=images.device.type == "cuda",
        # Without a generator of its own, a DataLoader draws from the global one.
        generator=torch.Generator(),
    )
    for stored in loader:
        if isinstance(stored, InputError):
            raise stored
        yield images.converted(stored)


def _begin(_worker: int) -> None:
    """Exempt what a worker inherits from garbage collection, which would copy the pages of every object."""
    gc.freeze()


class _Stored(Dataset[Any]):
    """Batches as they are stored: a byte is sent between processes as a byte."""

    def __init__(self, images: Pixels) -> None:
        self.images = Pixels(images.source, images.rows)

    def __getitem__(self, rows: Rows) -> Tensor | InputError:
        try:
            return torch.from_numpy(self.images.read(rows))
        except InputError as error:
            # Returned, because a worker's exception arrives with its traceback as part of the message.
            return error


def _plain(batches: Sequence[Rows]) -> list[Any]:
    return [rows.cpu().numpy() if isinstance(rows, Tensor) else rows for rows in batches]
