"""All checks of a GPU machine in one go: correctness against the CPU, speed against the peers, memory, runs.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --short --device cpu --out short.json

Each part runs in a process of its own with a time limit, so that one that fails or hangs does not lose the
results of the others; what it had found by then is kept. All parts together take at most ``--minutes``, and
each at most its share. A comparison is skipped if its peer is not installed. The script exits with 1 if a
check or a part fails, or a part is cut off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_parts import correctness, runs, speed
from gpu_parts.report import FULL, SHORT, Report, SkippedError

STATES = PASSED, FAILED, ERROR, CUT, SKIPPED = "passed", "failed", "error", "cut off", "skipped"
MINUTES = 8.5
"""Time limit of all parts, which leaves half a minute of nine for the start."""


@dataclass(frozen=True)
class Part:
    """A function that writes to a report, and its limit in seconds if all parts have ``MINUTES``."""

    measure: Callable[[Report], None]
    seconds: float


PARTS = {
    "machine": Part(speed.machine, 30),
    "logits": Part(correctness.logits, 45),
    "batches": Part(correctness.batches, 30),
    "attacks": Part(correctness.attacks, 120),
    "defenses": Part(correctness.training, 75),
    "processes": Part(runs.processes, 75),
    "resume": Part(runs.resume, 75),
    "pgd": Part(speed.pgd, 45),
    "training": Part(speed.training, 60),
    "autoattack": Part(speed.autoattack, 120),
}


def main() -> int:
    """Run the chosen parts, print a table and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    parser.add_argument("--device", default="cuda", help="the device to check")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of all parts")
    parser.add_argument("--short", action="store_true", help="tiny networks and few points")
    options = parser.parse_args()
    chosen = options.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    began, results = time.perf_counter(), dict[str, dict[str, Any]]()
    for name in chosen:
        left = 60 * options.minutes - (time.perf_counter() - began)
        share = PARTS[name].seconds * options.minutes / MINUTES
        results[name] = run_part(name, options.device, options.short, min(share, left))
        show(name, results[name])
        if options.out is not None:
            report = {"device": options.device, "short": options.short, "parts": results}
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    counts = {state: sum(one["state"] == state for one in results.values()) for state in STATES}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return 0 if counts[PASSED] + counts[SKIPPED] == len(results) else 1


def run_part(name: str, device: str, short: bool, seconds: float) -> dict[str, Any]:
    """The report of a part, with its ``state``."""
    if seconds <= 0:
        return {"state": CUT, "reason": "no time was left for it", "checks": [], "figures": {}}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.json"
        # Forked, so that torch is loaded once. This process never touches the device, as forking needs.
        process = multiprocessing.get_context("fork").Process(
            target=_measure, args=(name, file, device, short, seconds)
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            # The part leads a process group, so that its own commands end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
            late = {"state": CUT, "reason": f"its limit is {seconds:.1f} s", "seconds": seconds}
        else:
            late = {"state": ERROR, "reason": f"the process ended with code {process.exitcode}"}
        found = json.loads(file.read_text()) if file.exists() else {"checks": [], "figures": {}}
    return found if "state" in found else {**found, **late}


def _measure(name: str, file: Path, device: str, short: bool, seconds: float) -> None:
    """Measure a part in this process."""
    os.setsid()
    report = Report(name, file, torch.device(device), SHORT if short else FULL, seconds)
    report.save()
    try:
        PARTS[name].measure(report)
    except SkippedError as reason:
        report.save(state=SKIPPED, reason=str(reason))
    except Exception as error:
        lines = str(error).splitlines() or [""]
        report.save(state=ERROR, reason=f"{type(error).__name__}: {lines[0]}")
    else:
        holds = all(check["holds"] for check in report.content["checks"])
        report.save(state=PASSED if holds else FAILED)


def show(name: str, result: dict[str, Any]) -> None:
    """Print the result of a part."""
    seconds = f"{result.get('seconds', 0.0):.1f} s"
    print(f"{name:12} {result['state']:8} {seconds:>8}  {result.get('reason', '')}")
    for check in result["checks"]:
        verdict = "ok" if check["holds"] else "FAILED"
        print(f"    {verdict:6} {check['name']}: {_short(check['found'])} (allowed: {check['allowed']})")
    for label, value in result["figures"].items():
        print(f"           {label}: {_short(value)}")
    sys.stdout.flush()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
