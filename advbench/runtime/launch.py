"""Processes that ``torchrun`` started: which of them this one is. Importing this loads no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

KEYS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The variables by which ``torchrun`` tells each process where it stands."""


@dataclass(frozen=True)
class Launch:
    """This process among those of one run.

    Attributes:
        rank: the number of this process, from 0.
        count: the number of processes, on all machines.
        local_rank: the number of this process on its machine.
        local_count: the number of processes on its machine.
        address: the host name or address of process 0's machine.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str

    @property
    def name(self) -> str:
        """This process in messages: ``process 1 of 2``."""
        return f"process {self.rank} of {self.count}"


def launched() -> Launch | None:
    """This process among several; None if it runs alone."""
    rank, count, address, port, local_rank, local_count = (os.environ.get(key, "") for key in KEYS)
    if not (rank.isdecimal() and count.isdecimal() and port.isdecimal() and address) or int(count) < 2:
        return None
    local = (int(local_rank or rank), int(local_count or count))
    return Launch(int(rank), int(count), *local, address)


def run_alone() -> None:
    """Forget the other processes, in this process and in those that it starts."""
    for key in KEYS:
        os.environ.pop(key, None)


def own_threads(launch: Launch) -> int:
    """The CPU threads of each process by default: the machine's cores, divided by its processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // launch.local_count)
