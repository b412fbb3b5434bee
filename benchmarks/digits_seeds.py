"""Four defenses on the digits, two orders of attacks, five seeds: a table of docs/results.md and its picture.

    python benchmarks/digits_seeds.py --runs-dir runs/digits --picture docs/digits.svg

Runs what is not there yet, in processes of one thread each, then prints Markdown (mean ± standard deviation
over seeds, in percent) and draws robust accuracy after each stage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from leaderboards import Record, find_records
from leaderboards.statistics.summary import over_seeds

DEFENSES = ("standard", "at", "air", "joint")
SEQUENCES = ("fgsm,pgd,cw", "pgd,cw,fgsm")
METRICS = {
    "clean": "clean_accuracy",
    "average": "average_robust_accuracy",
    "unseen": "unseen_accuracy",
    "worst case": "worst_case_accuracy",
    "forgetting": "forgetting",
}


def label(record: Record) -> tuple[str, str]:
    """The defense as the command line names it, and its sequence."""
    name = "joint" if record.regime == "joint" else str(record.config["defense"])
    return name, ",".join(text.partition(":")[0] for text in record.config["sequence"])


def run_missing(runs_dir: Path, seeds: int, processes: int) -> list[Record]:
    """All records, after running the jobs that have none."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    done = {(*label(record), record.config["seed"]) for record in find_records(runs_dir)[0]}
    jobs = [
        (defense, sequence, seed)
        for seed in range(seeds)
        for sequence in SEQUENCES
        for defense in DEFENSES
        if (defense, sequence, seed) not in done
    ]

    def run(job: tuple[str, str, int]) -> None:
        defense, sequence, seed = job
        command = [sys.executable, "-m", "advbench", "run", "--threads", "1", "--runs-dir", str(runs_dir)]
        command += ["--defense", defense, "--sequence", sequence, "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(f"finished {defense} {sequence} seed {seed}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(processes) as workers:
        list(workers.map(run, jobs))
    return find_records(runs_dir)[0]


def table(records: list[Record], sequence: str) -> str:
    """Markdown: a row a defense, attacks in the order of the sequence, then the metrics."""
    attacks = sequence.split(",")
    unseen = [entry.name for entry in records[0].attacks if entry.role == "unseen"]
    columns = ["clean", *attacks, "average", *unseen, "worst case", "forgetting"]
    lines = ["| after the last stage | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for defense in DEFENSES:
        mine = [record for record in records if label(record) == (defense, sequence)]
        cells = [percent([value(record, column) for record in mine]) for column in columns]
        lines.append(f"| `{defense}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def value(record: Record, column: str) -> float | None:
    """A metric, or the robust accuracy of an attack after the last stage."""
    if column in METRICS:
        return record.metrics[METRICS[column]]
    names = [entry.name for entry in record.attacks]
    return float(record.matrix()[-1, names.index(column)])


def percent(values: list[float | None]) -> str:
    """Mean ± standard deviation in percent."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "–"
    summary = over_seeds(known)
    spread = f" ± {100 * summary.std:.1f}" if summary.std is not None else ""
    return f"{100 * summary.mean:.1f}{spread}"


def draw(records: list[Record], path: Path) -> None:
    """Robust accuracy on each attack of the sequence after each stage: what is learnt, what is forgotten."""
    from leaderboards import write_bytes
    from leaderboards.pictures import forgetting_curves

    picture = forgetting_curves([record for record in records if record.config["defense"] != "standard"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, picture.render(path.suffix.removeprefix(".")))


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    records = run_missing(arguments.runs_dir, arguments.seeds, arguments.processes)
    for sequence in SEQUENCES:
        print(f"`{sequence}`\n\n{table(records, sequence)}\n")
    if arguments.picture is not None:
        draw(records, arguments.picture)


if __name__ == "__main__":
    main()
