"""What the process that runs a benchmark keeps to itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from advbench.runtime.device import undisturbed

FAULTS = """
import resource, torch
from advbench.runtime.device import keep_freed_memory
print(keep_freed_memory())

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # Two at a time, and the first freed first, as layers do.
    for _ in range(50):
        first = torch.ones(2**20)
        second = first + 1
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
@pytest.mark.parametrize(
    "own",
    [{}, {"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"}],
    ids=["default", "set by the user", "set as a tunable"],
)
def test_freed_memory_is_used_again(own: dict[str, str]) -> None:
    """Layers of some megabytes fault no new pages in; what a user has set in the environment stands."""
    environment = {
        key: value for key, value in os.environ.items() if "MALLOC_" not in key and key != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**environment, **own}, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    assert kept == str(not own)
    # 50 times two of 1,024 pages otherwise.
    assert (int(faults) < 1000) is not bool(own)


@pytest.mark.parametrize("outside", [False, True])
def test_nothing_rounded_outlives_an_autocast_inside(outside: bool) -> None:
    """A weight that has moved since the last autocast is rounded anew, also within one of the caller's."""
    weight = torch.nn.Parameter(torch.ones(4, 4))
    x = torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
        with undisturbed():
            assert not torch.is_autocast_enabled("cpu")
            for value in (1.0, 2.0, 3.0):
                with torch.no_grad():
                    weight.fill_(value)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    found = torch.nn.functional.linear(x, weight)
                assert found.detach().float().unique().tolist() == [4 * value]
        assert torch.is_autocast_enabled("cpu") is outside
    assert torch.is_autocast_cache_enabled()
