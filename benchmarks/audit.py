"""What the audit costs beside the run that it audits, here and in another checkout.

    python benchmarks/audit.py --before ../advbench-before --repeats 5

Evaluates an undefended and an adversarially trained network on the digits, 360 points, preset
``standard``, one thread. ``--before`` names a checkout to compare with; both take turns in fresh processes,
so that whatever else the machine does meets both. Prints medians, and the ratios of run and audit together:
of seconds, which the limit is for, of CPU seconds, which other processes disturb less, and of passes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
LIMIT = 1.3
"""Run and audit together may take so many times what they took before."""

WORK = """
import json, os, sys, tempfile, time
import torch
from torch import nn
from torch.nn import functional as F
import importlib, pathlib
# Older checkouts have the module under another name.
moved = pathlib.Path("advbench/external").is_dir()
job = importlib.import_module("advbench.external.job" if moved else "advbench.evaljob")
from advbench import evaluate_model
from advbench.data import load_dataset
from attacks_pool import count_passes, pool

torch.set_num_threads(1)
train = load_dataset("digits").train

def trained(attack):
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
    head = [nn.Flatten(), nn.Linear(1024, 10)]
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *head)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(10):
        for index in torch.randperm(len(train.x)).split(128):
            x, y = train.x[index], train.y[index]
            if attack is not None and epoch > 2:
                x = attack(model, x, y)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()

probe, took = job.probe, []

def clocks():
    # Processes that have ended count too: the audit asks a model in one of its own.
    return time.perf_counter(), sum(os.times()[:4])

def since(began):
    return [now - before for now, before in zip(clocks(), began)]

def timed(*args, **options):
    began = clocks()
    with count_passes(model) as passes:
        found = probe(*args, **options)
    took.append((*since(began), passes.forwards + 2 * passes.backwards))
    return found

job.probe = timed
results = []
for name, attack in (("undefended", None), ("adversarially trained", pool.get("pgd", eps=0.2, steps=3))):
    model = trained(attack)
    began = clocks()
    with tempfile.TemporaryDirectory() as folder, count_passes(model) as passes:
        run = evaluate_model(model, preset="standard", threads=1, runs_dir=folder)
        whole = (*since(began), passes.forwards + 2 * passes.backwards)
    numbers = {}
    for kind, audit, all in zip(("seconds", "cpu", "passes"), took[-1], whole):
        numbers |= {f"audit_{kind}": audit, f"run_{kind}": all - audit}
    results.append({"model": name, **numbers, "verdict": run.record.audit.verdict,
                    "checks": len(run.record.audit.checks)})
print(json.dumps(results))
"""


def evaluated(checkout: Path) -> list[dict[str, float]]:
    """What one process in ``checkout`` measured of each model."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(results: list[list[dict[str, float]]], model: int) -> dict[str, float]:
    """The median of each number of a model over repetitions."""
    one = results[0][model]
    numbers = [key for key in one if key.startswith(("run_", "audit_"))]
    return {key: statistics.median(result[model][key] for result in results) for key in numbers}


def ratio(found: dict[str, dict[str, float]], kind: str) -> float:
    """How many times as much of a ``kind`` run and audit take together here as before."""
    here, before = (found[name][f"run_{kind}"] + found[name][f"audit_{kind}"] for name in ("here", "before"))
    return here / before


def main() -> None:
    """Measure, print, and fail where the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout of advbench")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    checkouts = {"here": HERE} | ({"before": options.before.resolve()} if options.before else {})
    results: dict[str, list[list[dict[str, float]]]] = {name: [] for name in checkouts}
    for _ in range(options.repeats):
        for name, checkout in checkouts.items():
            results[name].append(evaluated(checkout))
    good = True
    for model, one in enumerate(results["here"][0]):
        found = {name: medians(result, model) for name, result in results.items()}
        print(f"{one['model']}, median of {options.repeats}:")
        for name, numbers in found.items():
            print(
                f"  {name:7s} run {numbers['run_seconds']:6.2f} s (CPU {numbers['run_cpu']:.2f} s), "
                f"audit {numbers['audit_seconds']:6.2f} s (CPU {numbers['audit_cpu']:.2f} s); "
                f"run {numbers['run_passes']:12,.0f}, audit {numbers['audit_passes']:12,.0f} passes forward, "
                f"a backward pass counting as two; {results[name][0][model]['checks']} checks, "
                f"{results[name][0][model]['verdict']}"
            )
        if "before" in found:
            alone = found["here"]["audit_seconds"] / found["before"]["audit_seconds"]
            print(
                f"  together {ratio(found, 'seconds'):.2f} times as long as before (limit {LIMIT:g}); "
                f"{ratio(found, 'cpu'):.2f} times the CPU seconds, "
                f"{ratio(found, 'passes'):.2f} times the passes; audit {alone:.2f} times"
            )
            good &= ratio(found, "seconds") <= LIMIT
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
