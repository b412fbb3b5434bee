"""Reproducible randomness: generators seeded by a key, and draws per point of a batch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor


def key_seed(*key: object) -> int:
    """A 63-bit seed computed from all parts of ``key``, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded with ``key``; drawing on the CPU gives the same numbers for every device."""
    return torch.Generator().manual_seed(key_seed(*key))


class PartGenerator(torch.Generator):
    """Draws for a batch of ``total`` points but returns only those for its remaining points, ``rows`` (n,).

    Each point thus gets the same draws no matter which other points remain. See :func:`drawn`.
    """

    total: int
    rows: Tensor

    @classmethod
    def of(cls, generator: torch.Generator, total: int, rows: Tensor) -> torch.Generator:
        """A copy of ``generator`` restricted to ``rows``, or ``generator`` itself if these are all points."""
        if len(rows) == total:
            return generator
        part = cls(generator.device)
        part.set_state(generator.get_state())
        part.total, part.rows = total, rows.to(generator.device)
        return part

    @contextmanager
    def instead(self, total: int, rows: Tensor) -> Iterator[None]:
        """Within the block, draw for ``rows`` of a batch of ``total`` points."""
        before = self.total, self.rows
        self.total, self.rows = total, rows.to(self.device)
        try:
            yield
        finally:
            self.total, self.rows = before


def keyed_like(generator: torch.Generator, *key: object) -> torch.Generator:
    """Like :func:`keyed_generator`, for the same points as ``generator``."""
    keyed = keyed_generator(*key)
    if isinstance(generator, PartGenerator):
        return PartGenerator.of(keyed, generator.total, generator.rows)
    return keyed


def drawn_for(generator: torch.Generator, x: Tensor) -> tuple[int, Tensor]:
    """The size of the batch that ``generator`` draws for, and the rows (n,) in it of the points ``x``."""
    if isinstance(generator, PartGenerator):
        return generator.total, generator.rows.to(x.device)
    return len(x), torch.arange(len(x), device=x.device)


@contextmanager
def part_drawn(generator: torch.Generator, total: int, rows: Tensor) -> Iterator[None]:
    """Within the block, a generator of a part of a batch draws for ``rows`` of ``total`` other points."""
    with generator.instead(total, rows) if isinstance(generator, PartGenerator) else nullcontext():
        yield


@contextmanager
def strided(generator: torch.Generator, x: Tensor, step: int, number: int) -> Iterator[slice | Tensor]:
    """Yield the rows of ``x`` that are rows ``number``, ``number`` + ``step``, … of the batch it is part of.

    Within the block ``generator`` draws for those rows.
    """
    if not isinstance(generator, PartGenerator):
        yield slice(number, None, step)
        return
    rows = generator.rows
    mine = rows % step == number
    with generator.instead(len(range(number, generator.total, step)), (rows[mine] - number) // step):
        yield mine.nonzero().flatten().to(x.device)


def drawn(draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw float32 numbers of ``shape`` with ``draw`` (``torch.rand``, ``torch.randn``), point by point.

    ``shape`` may have several rows per point; those of one point are adjacent.
    """
    how = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if not isinstance(generator, PartGenerator):
        return draw(tuple(shape), **how)
    each = shape[0] // len(generator.rows)
    return draw((generator.total, each, *shape[1:]), **how)[generator.rows].flatten(0, 1)


def draw_seed(generator: torch.Generator) -> int:
    """Draw one 62-bit seed from ``generator``."""
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())


def ambient_generator(x: Tensor) -> torch.Generator:
    """The generator to use when the caller passed none.

    Its seed depends on the global random state and the batch, so that ``torch.manual_seed`` makes a result
    reproducible. It does not change the global state.
    """
    state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    return keyed_generator("ambient", state, x.shape, float(x.double().sum()))


def uniform(like: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws in [low, high), with the shape, type and device of ``like``."""
    draws = drawn(torch.rand, like.shape, generator)
    return (draws * (high - low) + low).to(like.device, like.dtype)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws, with the shape, type and device of ``like``."""
    return drawn(torch.randn, like.shape, generator).to(like.device, like.dtype)


@contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python with ``seed``; restore them afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
