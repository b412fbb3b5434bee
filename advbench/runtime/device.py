"""What a run ran on: device, threads, versions, commit."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attacks_pool.calling.guard import ordinary_mode
from attacks_pool.errors import InputError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
MALLOPT = {"trim threshold": (-1, 512 * 2**20), "mmap threshold": (-3, 32 * 2**20)}
"""glibc's parameters, and bytes: what is freed up to there stays with the process. More it does not allow."""


def choose_device(text: str) -> torch.device:
    """``auto`` takes a CUDA GPU where there is one, else the CPU; ``cpu``, ``cuda``, ``cuda:1`` say which.

    Raises:
        InputError: no such device here.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = text.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdecimal())):
        raise unknown("device", text, DEVICES)
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise InputError(f"device {text!r} is not here: this machine has {count} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' is not here: use auto or cpu")
    return torch.device(text)


@contextmanager
def undisturbed() -> Iterator[None]:
    """As :func:`ordinary_mode`, and no autocast of the caller's inside; also a decorator.

    It switches flags and enters no autocast of its own: torch forgets the weights that an autocast has
    rounded when the outermost one ends, and training inside would go on with the rounded weights of its first
    step. Inside an autocast of the caller's nothing rounded is kept, for the same reason.
    """
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    enabled, kept = [torch.is_autocast_enabled(kind) for kind in kinds], torch.is_autocast_cache_enabled()
    nested = torch.autocast_increment_nesting() > 1
    torch.autocast_decrement_nesting()
    try:
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
        torch.set_autocast_cache_enabled(kept and not nested)
        with ordinary_mode():
            yield
    finally:
        for kind, before in zip(kinds, enabled, strict=True):
            torch.set_autocast_enabled(kind, before)
        torch.set_autocast_cache_enabled(kept)


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """The thread count asked for, and deterministic convolutions on a GPU; afterwards as before."""
    keep_freed_memory()
    before, cudnn = torch.get_num_threads(), torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    if threads is not None:
        torch.set_num_threads(threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark = flags


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, where its allocator is glibc's and nobody has set that otherwise.

    By default each layer's output of a megabyte or so goes back to the system, and the next one has all its
    pages made and cleared anew: up to half the time of a small network's forward pass.

    Returns:
        Whether it does.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ)
    own = own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in MALLOPT.values())
