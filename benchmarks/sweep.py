"""A sweep of digits runs with one local worker against two, every worker on one thread.

    python benchmarks/sweep.py --repeats 3

The grid is made here: two defenses, three sequences and four seeds are 24 runs. One worker and two take turns
in fresh runs directories, so that whatever else the machine does meets both. Prints the seconds of every
sweep, both medians and their ratio; the time is that of the whole command, its start and plan included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from leaderboards import comparable, find_records

SEQUENCES = ["fgsm,pgd:steps=10", "pgd:steps=10,fgsm", "fgsm,pgd-l2:steps=10"]
DEFENSES = ["at", "air"]


def grid_of(seeds: int, epochs: int) -> dict[str, Any]:
    """``2 × 3 × seeds`` runs on the digits."""
    return {
        "defenses": DEFENSES,
        "sequences": SEQUENCES,
        "seeds": seeds,
        "unseen": "gaussian-noise",
        "epochs": epochs,
        "threads": 1,
        "device": "cpu",
    }


def sweep(grid: Path, runs_dir: Path, workers: int) -> float:
    """Run a sweep as a command of its own; returns its seconds."""
    command = [sys.executable, "-m", "advbench", "sweep", str(grid)]
    command += ["--runs-dir", str(runs_dir), "--workers", str(workers)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def records_of(runs_dir: Path) -> list[str]:
    """What can be compared of every record, in an order of its own."""
    return sorted(json.dumps(comparable(record), sort_keys=True) for record in find_records(runs_dir)[0])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="sweeps of each kind")
    parser.add_argument("--seeds", type=int, default=4, help="seeds; six runs each")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a stage")
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    content = grid_of(chosen.seeds, chosen.epochs)
    count = len(DEFENSES) * len(SEQUENCES) * chosen.seeds
    print(f"{count} runs, {cores} cores, {chosen.repeats} repeats")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        grid = Path(folder) / "grid.yaml"
        grid.write_text(json.dumps(content))
        for repeat in range(chosen.repeats):
            for workers, found in seconds.items():
                runs_dir = Path(folder) / f"{repeat}-{workers}"
                found.append(sweep(grid, runs_dir, workers))
                print(f"repeat {repeat + 1}, workers {workers}: {found[-1]:.1f} s", flush=True)
            one, two = (records_of(Path(folder) / f"{repeat}-{workers}") for workers in seconds)
            if len(one) != count or one != two:
                sys.exit("the records of one worker and of two differ")
    first, second = (statistics.median(found) for found in seconds.values())
    print(f"median: one worker {first:.1f} s, two workers {second:.1f} s, ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
