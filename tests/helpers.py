"""What tests of several files do with directories and processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from advbench.data.formats.corrupted import CORRUPTIONS

ROOT = Path(__file__).resolve().parent.parent


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every file below with its bytes, every directory with None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def here(**settings: str) -> dict[str, str]:
    """The environment of a process that imports this tree wherever it starts."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", **settings}


def python(*arguments: str, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with what it wrote."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=here(**settings),
        capture_output=True,
        text=True,
        check=False,
    )


def forked(work: Callable[..., object], *arguments: object) -> Any:
    """A process that does this work, started as a copy of this one: it has nothing to import first."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def together(count: int, work: Callable[[int], object]) -> None:
    """Processes that each do this work, with their number, and begin at one moment."""
    begin = multiprocessing.get_context("fork").Barrier(count)

    def do(number: int) -> None:
        begin.wait()
        work(number)

    processes = [forked(do, number) for number in range(count)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count


def cifar_c(root: Path) -> Path:
    """CIFAR-10-C with two images at each severity; a pixel tells corruption and severity."""
    place = root / "CIFAR-10-C"
    place.mkdir()
    np.save(place / "labels.npy", np.tile([3, 8], 5))
    for number, corruption in enumerate((*CORRUPTIONS, "saturate")):
        pixels = np.zeros((10, 32, 32, 3), dtype=np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number, np.repeat(np.arange(1, 6), 2)
        np.save(place / f"{corruption}.npy", pixels)
    return root
