"""What the process that runs a benchmark keeps to itself."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from advbench.runtime.device import keep_freed_memory, undisturbed

FAULTS = """
import resource, torch
from advbench.runtime.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # Two at a time, and the first freed first, as layers do.
    for _ in range(50):
        first = torch.ones(2**20)
        second = first + 1
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults(), faults())
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")


@GLIBC
def test_freed_memory_is_used_again() -> None:
    """Layers of some megabytes fault no new pages in."""
    environment = {
        key: value for key, value in os.environ.items() if "MALLOC_" not in key and key != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    before, kept, _, after = done.stdout.split()
    assert kept == "True"
    # 50 times two of 1,024 pages otherwise.
    assert int(after) < 1000 < int(before)


@GLIBC
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=0")],
)
def test_what_a_user_has_set_in_the_environment_stands(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the allocator is set"))
    assert keep_freed_memory.__wrapped__() is False


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
