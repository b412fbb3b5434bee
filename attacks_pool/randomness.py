"""Explicit randomness: every draw comes from a generator that a key determines."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
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
    draws = torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return (draws * (high - low) + low).to(like.device, like.dtype)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws of the shape, type and device of ``like``."""
    draws = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return draws.to(like.device, like.dtype)


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
