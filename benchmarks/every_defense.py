"""Every registered defense trained and evaluated with one command each: its seconds and what it withstands.

    python benchmarks/every_defense.py --runs-dir runs/defenses
    python benchmarks/every_defense.py --runs-dir runs/mnist --dataset mnist --data-dir data \\
        --sequence fgsm,pgd --epochs 1 --points 200 --set pretrain.epochs=1

Runs what is not there yet, one thread each, and prints Markdown. Seconds are those of the whole command, its
start and the audit included: by the clock, and of the processor where other work shares it. With --page it
goes between the lines ``<!-- DATASET -->`` and ``<!-- end -->`` there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from ablations import put

from defenses import registry
from leaderboards import Record, find_records

SECONDS = "seconds.json"
"""Beside the runs: seconds of each command."""


def run_missing(names: list[str], runs_dir: Path, options: list[str]) -> dict[str, list[float]]:
    """Seconds by the clock and of the processor by defense, after running those that have none."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    path = runs_dir / SECONDS
    seconds: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name in seconds:
            continue
        command = [sys.executable, "-m", "advbench", "run", "--threads", "1", "--runs-dir", str(runs_dir)]
        began, used = time.perf_counter(), processor_seconds()
        done = subprocess.run([*command, "--defense", name, *options], capture_output=True, text=True)
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip()}", file=sys.stderr, flush=True)
            continue
        seconds[name] = [time.perf_counter() - began, processor_seconds() - used]
        path.write_text(json.dumps(seconds, indent=1))
        print(f"{name}: {seconds[name][1]:.0f} s of the processor", file=sys.stderr, flush=True)
    return seconds


def processor_seconds() -> float:
    """Of all commands that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(names: list[str], records: list[Record], seconds: dict[str, list[float]]) -> str:
    """Markdown, a row a defense."""
    columns = [
        "regime",
        "s",
        "processor s",
        "clean",
        "average",
        "worst case",
        "unseen",
        "parameters",
        "multiply-adds",
        "audit",
    ]
    lines = ["| defense | " + " | ".join(columns) + " |", "|---|---" + "|--:" * 8 + "|---|"]
    for name in names:
        mine = [record for record in records if record.config["defense"] == name]
        if not mine or name not in seconds:
            continue
        record = mine[-1]
        keys = ("clean_accuracy", "average_robust_accuracy", "worst_case_accuracy", "unseen_accuracy")
        values = [record.metrics[key] for key in keys]
        cells = [record.regime, *(f"{value:.0f}" for value in seconds[name])]
        cells += ["–" if value is None else f"{100 * value:.1f}" for value in values]
        cells += [f"{record.cost.parameters:,}", f"{record.cost.multiply_adds:,}"]
        flags = ", ".join(sorted({flag.code for flag in record.audit.flags}))
        cells.append(f"{record.audit.verdict}{f' ({flags})' if flags else ''}")
        shown = f"`{name}`{' (target-aware)' if record.config['target_aware'] else ''}"
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/defenses"))
    parser.add_argument("--defense", action="append", help="only this one; may be given several times")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--sequence", default="fgsm,pgd,cw")
    parser.add_argument("--epochs")
    parser.add_argument("--points")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    options = [f"--dataset={given.dataset}", f"--sequence={given.sequence}"]
    for key in ("data_dir", "epochs", "points"):
        if getattr(given, key) is not None:
            options += [f"--{key.replace('_', '-')}={getattr(given, key)}"]
    options += [f"--set={setting}" for setting in given.set]
    names = given.defense or registry.names()
    seconds = run_missing(names, given.runs_dir, options)
    text = table(registry.names(), find_records(given.runs_dir)[0], seconds)
    print(text)
    if given.page is not None:
        given.page.write_text(
            put(given.page.read_text(encoding="utf-8"), given.dataset, text), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
