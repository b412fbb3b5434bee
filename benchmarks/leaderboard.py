"""How long ``advbench leaderboard`` takes on many runs, its start-up included.

    python benchmarks/leaderboard.py --records 10000 --site

The runs are made here: records that the schema accepts, with stored outcomes that give their numbers, but
no weights and no training. They are 5 seeds of up to 50 settings in each comparison group, 360 test points,
three attacks in sequence and three unseen ones. Timed are the first command, which reads every file, and
then the same command again (median of ``--repeats``); with ``--site`` the static site too. ``--keep DIR``
keeps the runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leaderboards import parse_record, summarise, write_outcomes
from leaderboards.boards.cache import NAME

POINTS, SEEDS, SETTINGS = 360, 5, 50
DEFENSES = ["at", "air", "trades", "mart", "ewc", "si", "lwf", "replay", "n-fgsm", "free"]
SEEN = ["fgsm:eps=0.2", "pgd:eps=0.2,steps=50", "cw:eps=1,steps=50"]
UNSEEN = ["apgd:eps=0.2,steps=100", "pgd-l2:eps=1,steps=50", "square:eps=0.2,queries=1000"]
FAMILIES = [
    "single-step",
    "projected-gradient",
    "minimal-norm",
    "projected-gradient",
    "projected-gradient",
    "query",
]


def settings(number: int) -> dict[str, Any]:
    """Which run number ``number`` is: its seed, its setting and its comparison group."""
    seed, rest = number % SEEDS, number // SEEDS
    setting, group = rest % SETTINGS, rest // SETTINGS
    return {
        "seed": seed,
        "defense": DEFENSES[setting % len(DEFENSES)],
        "sigma": round(0.02 * (1 + setting // len(DEFENSES)), 2),
        "skill": 0.35 + 0.5 * setting / SETTINGS,
        "dataset": ["digits", "mnist", "fashion-mnist", "cifar10"][group % 4],
        "model": f"cnn-{group // 4}",
    }


def outcomes(skill: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes in which a point is as hard for one run as for another: (4, n) and (4, 6, n)."""
    hardness = np.random.default_rng(0).random(POINTS)
    learnt = np.array([0.1, 0.6, 0.8, 1.0])[:, None, None] * skill
    attack = np.linspace(1.0, 0.6, 6)[None, :, None]
    robust = random.normal(0, 0.1, (4, 6, POINTS)) + hardness < learnt * attack
    clean = random.random((4, POINTS)) < 0.97
    return clean, robust & clean[:, None]


def cells(clean: np.ndarray, robust: np.ndarray) -> Iterator[dict[str, Any]]:
    """The cells of the matrix."""
    for stage in range(4):
        right = int(clean[stage].sum())
        for index, text in enumerate(["clean", *SEEN, *UNSEEN]):
            yield {
                "stage": stage,
                "attack": text,
                "threat": {"norm": "linf", "eps": 0.2, "access": "white-box"},
                "n": POINTS,
                "clean_correct": right,
                "robust": right if index == 0 else int(robust[stage, index - 1].sum()),
                "invalid": 0,
                "seconds": 0.25,
                "forwards": 18_000,
                "backwards": 18_000,
            }


def template() -> dict[str, Any]:
    """What all records share."""
    roles = ["seen"] * 3 + ["unseen"] * 3
    return {
        "schema": 1,
        "status": "complete",
        "protocol": "5f0c1d2e3b4a5968",
        "regime": "continual",
        "attacks": [
            {
                "text": text,
                "name": text.partition(":")[0],
                "family": family,
                "norm": "linf",
                "eps": 0.2,
                "access": "white-box",
                "kind": "budgeted",
                "role": role,
                "training": text if role == "seen" else None,
            }
            for text, family, role in zip([*SEEN, *UNSEEN], FAMILIES, roles, strict=True)
        ],
        "environment": {
            "versions": {"torch": "2.15.0", "numpy": "2.4.6"},
            "commit": None,
            "device": "cpu",
            "threads": 1,
            "python": "3.11",
            "platform": "synthetic",
        },
        "cost": {
            "training_forwards": 801_660,
            "training_backwards": 698_220,
            "evaluation_seconds": 23.5,
            "parameters": 85_066,
            "multiply_adds": 379_520,
        },
        "audit": {"verdict": "ok", "flags": [], "checks": ["zero-gradient", "stochastic", "nan-logits"]},
    }


def record(number: int, clean: np.ndarray, robust: np.ndarray) -> dict[str, Any]:
    """Run number ``number`` as the JSON of a record."""
    chosen, tree = settings(number), copy.deepcopy(template())
    R = robust.mean(2)
    parameters = {"sigma": chosen["sigma"], "lambda_i": 2.0, "beta": 1.0}
    tree["id"] = f"{number:06d}-{chosen['defense']}"
    tree["created"] = f"2026-01-{1 + number % 28:02d}T00:00:00+00:00"
    tree["config"] = {
        "defense": chosen["defense"],
        "params": parameters,
        "sequence": SEEN,
        "training": SEEN,
        "regime": "continual",
        "dataset": chosen["dataset"],
        "model": chosen["model"],
        "plan": {"epochs": 5, "batch_size": 64, "optimizer": "sgd", "lr": 0.1, "schedule": "one-cycle"},
        "pretrain": {"epochs": 20, "batch_size": 64, "optimizer": "sgd", "lr": 0.1},
        "seed": chosen["seed"],
        "target_aware": False,
    }
    spec = {"defense": chosen["defense"], "parameters": parameters}
    tree["stages"] = [
        {
            "index": t,
            "attacks": [SEEN[t - 1]] if t else [],
            "weights": f"stages/{t}.safetensors",
            "spec": spec,
        }
        for t in range(4)
    ]
    tree["environment"]["data"] = {"name": chosen["dataset"], "fingerprint": f"{chosen['dataset']:0>16}"}
    tree["cells"] = list(cells(clean, robust))
    tree["metrics"] = summarise(
        R[:, :3], clean.mean(1), regime="continual", R_unseen=R[:, 3:], robust=robust[-1], counts=[POINTS] * 6
    )
    tree["per_class"] = [
        {
            "class": str(label),
            "n": POINTS // 10,
            "clean_correct": 30,
            "robust": dict.fromkeys([*SEEN, *UNSEEN], 12),
            "worst_case": 7,
        }
        for label in range(10)
    ]
    tree["cost"]["training_seconds"] = 30.0 + number % 7
    return tree


def make(runs_dir: Path, count: int) -> None:
    """Write ``count`` runs."""
    for number in range(count):
        clean, robust = outcomes(settings(number)["skill"], np.random.default_rng(number + 1))
        tree = record(number, clean, robust)
        if number == 0:
            parse_record(tree, "the first record")
        directory = runs_dir / str(tree["id"])
        directory.mkdir()
        (directory / "record.json").write_text(json.dumps(tree, indent=1), "utf-8")
        if number < SEEDS:
            write_outcomes(directory / "outcomes.npz", clean, robust)
        else:
            # The same file without waiting for the disk each time.
            np.savez_compressed(directory / "outcomes.npz", clean=clean, robust=robust)


def timed(*arguments: str) -> tuple[float, float]:
    """Seconds of one command as a process of its own, and the seconds of processor time in them."""
    began, used = time.perf_counter(), _children()
    command = [sys.executable, "-m", "advbench", "leaderboard", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, _children() - used


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def shown(found: list[tuple[float, float]]) -> str:
    """The median seconds, their range, and the median of the processor's."""
    seconds, used = zip(*found, strict=True)
    spread = f" ({min(seconds):.1f}–{max(seconds):.1f})" if len(found) > 1 else ""
    return f"{statistics.median(seconds):.1f} s{spread}, of the processor {statistics.median(used):.1f} s"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000, help="runs to make")
    parser.add_argument("--repeats", type=int, default=3, help="times that each later command is timed")
    parser.add_argument("--site", action="store_true", help="time the static site too")
    parser.add_argument(
        "--keep", type=Path, help="make the runs here, and leave them; taken as they are if there"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = chosen.keep or Path(folder) / "runs"
        if not runs_dir.exists():
            runs_dir.mkdir(parents=True)
            make(runs_dir, chosen.records)
        (runs_dir / NAME).unlink(missing_ok=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(f"{len(list(runs_dir.iterdir()))} records, {cores} cores", flush=True)
        where = ("--runs-dir", str(runs_dir))
        print(f"leaderboard, first time: {shown([timed(*where)])}", flush=True)
        for name, options in {
            "leaderboard": (),
            "leaderboard --dataset digits": ("--dataset", "digits"),
            "leaderboard --rank-by forgetting": ("--rank-by", "forgetting"),
            "leaderboard --format csv": ("--format", "csv"),
        }.items():
            found = [timed(*where, *options) for _ in range(chosen.repeats)]
            print(f"{name}: {shown(found)}", flush=True)
        if chosen.site:
            place = Path(folder) / "site"
            print(f"site: {shown([timed(*where, '--format', 'html', '--out', str(place))])}", flush=True)


if __name__ == "__main__":
    main()
