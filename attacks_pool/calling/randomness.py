"""Explicit randomness: every draw comes from a generator that a key determines."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def key_seed(*key: object) -> int:
    """A 63-bit seed that depends on every part of ``key``, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by ``key``; draws made on the CPU are the same for every device."""
    return torch.Generator().manual_seed(key_seed(*key))


class PartGenerator(torch.Generator):
    """Draws for a batch of ``total`` points and gives those of ``rows`` (n,), the points that are left of it.

    What a point gets is thus the same whichever others are left. See :func:`drawn`.
    """

    total: int
    rows: Tensor

    @classmethod
    def of(cls, generator: torch.Generator, total: int, rows: Tensor) -> torch.Generator:
        """``generator`` from where it stands, but for ``rows`` alone; itself where those are all."""
        if len(rows) == total:
            return generator
        part = cls(generator.device)
        part.set_state(generator.get_state())
        part.total, part.rows = total, rows.to(generator.device)
        return part


def keyed_like(generator: torch.Generator, *key: object) -> torch.Generator:
    """As :func:`keyed_generator`, for the points that ``generator`` draws for."""
    keyed = keyed_generator(*key)
    if isinstance(generator, PartGenerator):
        return PartGenerator.of(keyed, generator.total, generator.rows)
    return keyed


def drawn_for(generator: torch.Generator, x: Tensor) -> tuple[int, Tensor]:
    """How many points ``generator`` draws for, and which of them (n,) the points ``x`` (n, …) are."""
    if isinstance(generator, PartGenerator):
        return generator.total, generator.rows.to(x.device)
    return len(x), torch.arange(len(x), device=x.device)


def drawn(draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """What ``draw`` (``torch.rand``, ``torch.randn``) gives in float32, a row of ``shape`` for each point.

    There may be several rows a point; they stand together.
    """
    how = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if not isinstance(generator, PartGenerator):
        return draw(tuple(shape), **how)
    each = shape[0] // len(generator.rows)
    return draw((generator.total, each, *shape[1:]), **how)[generator.rows].flatten(0, 1)


def draw_seed(generator: torch.Generator) -> int:
    """One 62-bit seed taken from ``generator``."""
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())


def ambient_generator(x: Tensor) -> torch.Generator:
    """The generator of a caller who gave none.

    It is seeded by the global random state and the batch, so that ``torch.manual_seed`` makes a result
    reproducible while the global state stays where it was.
    """
    state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    return keyed_generator("ambient", state, x.shape, float(x.double().sum()))


def uniform(like: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws in [low, high) of the shape, type and device of ``like``."""
    draws = drawn(torch.rand, like.shape, generator)
    return (draws * (high - low) + low).to(like.device, like.dtype)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws of the shape, type and device of ``like``."""
    return drawn(torch.randn, like.shape, generator).to(like.device, like.dtype)


@contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generators by ``seed`` and puts back what they were, of torch, NumPy and Python."""
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
