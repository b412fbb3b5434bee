"""The main job on the embedded digits: wall time and peak memory, median of three runs.

    python benchmarks/main_job.py

Runs ``advbench run --defense air --sequence fgsm,pgd,cw`` in a fresh process each time, on two threads, and
checks that every run gave the same record (seconds aside). Also times ``advbench --help``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from leaderboards import comparable, read_record

COMMAND = [sys.executable, "-m", "advbench"]
JOB = ["run", "--defense", "air", "--sequence", "fgsm,pgd,cw", "--threads", "2"]


def measure(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident memory in GB of one process."""
    began = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"advbench {' '.join(arguments)} left with code {process.returncode}")
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - began, usage.ru_maxrss * unit / 1e9


def report(what: str, results: list[tuple[float, float]], seconds: float, gigabytes: float) -> bool:
    """Print medians beside their limits; whether both hold."""
    wall, memory = (statistics.median(column) for column in zip(*results, strict=True))
    every = ", ".join(f"{value:.2f}" for value, _ in results)
    print(f"{what}: {wall:.2f} s median of {len(results)} ({every}; limit {seconds:g} s), ", end="")
    print(f"peak memory {memory:.2f} GB (limit {gigabytes:g} GB)")
    return wall <= seconds and memory <= gigabytes


def main() -> None:
    """Measure, print, and fail where a limit is passed or two records differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [measure([*JOB, "--runs-dir", folder]) for _ in range(repeat)]
        records = [comparable(read_record(path)) for path in sorted(Path(folder).iterdir())]
    good = report("advbench run", jobs, 60, 1.5)
    same = all(record == records[0] for record in records)
    print(f"records of {len(records)} runs are {'equal' if same else 'NOT equal'}, seconds aside")
    good &= report("advbench --help", [measure(["--help"]) for _ in range(repeat)], 0.5, 1.5)
    sys.exit(0 if good and same else 1)


if __name__ == "__main__":
    main()
