"""What tests of several files do with directories and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
