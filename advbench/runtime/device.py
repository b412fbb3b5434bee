"""Devices, threads and torch's modes for a run."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from advbench.runtime.launch import Launch, launched
from attacks_pool.calling.guard import ordinary_mode
from attacks_pool.errors import InputError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
MALLOPT = {"trim threshold": (-1, 512 * 2**20), "mmap threshold": (-3, 32 * 2**20)}
"""glibc's parameters, and a size in bytes (its maximum): smaller freed blocks stay with the process."""


def choose_device(text: str) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is a CUDA GPU if there is one, else the CPU.

    Of several processes on a machine, each gets a GPU of its own.

    Raises:
        InputError: this machine has no such device, or fewer GPUs than processes.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = text.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdecimal())):
        raise unknown("device", text, DEVICES)
    launch = launched()
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise InputError(f"device {text!r} is not available: this machine has {count} CUDA devices")
        if launch is not None and launch.local_count > 1:
            return _own_gpu(text, launch, count)
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("device 'mps' is not available: use auto or cpu")
        if launch is not None:
            raise InputError("device 'mps' takes one process: leave out torchrun, or use --device cpu")
    return torch.device(text)


def _own_gpu(text: str, launch: Launch, count: int) -> torch.device:
    """The GPU of this process among the ``count`` of its machine, which runs several processes."""
    if ":" in text:
        raise InputError(
            f"device {text!r} is one GPU, and this machine runs {launch.local_count} processes: leave out "
            "--device, and each gets its own"
        )
    if launch.local_count > count:
        raise InputError(
            f"this machine has {count} CUDA devices and runs {launch.local_count} processes: start one for "
            "each device, or give --device cpu"
        )
    return torch.device("cuda", launch.local_rank)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Like :func:`ordinary_mode`, and also switch off the caller's autocast; usable as a decorator.

    It sets flags and does not enter an autocast of its own: torch clears its cache of rounded weights only
    when the outermost autocast ends, and training inside would reuse the rounded weights of its first step.
    For the same reason, the cache is off inside a caller's autocast.
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
    """Use ``threads`` threads, and deterministic convolutions on a GPU; restore both afterwards."""
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
    """Make the process keep freed memory, if its allocator is glibc's and the user has not configured it.

    By default, each layer's output of a megabyte or so is returned to the system, and the next one needs new,
    cleared pages: up to half the time of a small network's forward pass.

    Returns:
        Whether the process keeps freed memory.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ)
    own = own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in MALLOPT.values())
