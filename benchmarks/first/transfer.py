"""Defenses of the first leaderboard under points that were crafted on the plain classifier they started from.

    python benchmarks/first/transfer.py runs/first --defenses at,air,mid

Each attack of a run's sequence is run on row 0's model, and what it finds is judged on the last row's. Runs
of one seed share that classifier, so that all defenses meet the same points. In percent of all test points,
mean and standard deviation over seeds. Needs the weights, which leaderboards/results does not have.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench.resolve import bound_attacks
from advbench.saved import Run, load_run
from attacks_pool.randomness import keyed_generator
from leaderboards import inventory

Points = dict[tuple[bytes, str], Tensor]


def digest(model: nn.Module) -> bytes:
    """Equal for models of the same weights."""
    return b"".join(value.detach().cpu().numpy().tobytes() for value in model.state_dict().values())


def survived(run: Run, crafted: Points) -> float:
    """Percent of clean and transferred points right, mean over the sequence's attacks."""
    x, y = run.test_data
    plain, model = run.stage(0), run.model
    weights = digest(plain)
    shares = []
    for attack in bound_attacks(run.config)["seen"]:
        key = weights, attack.text
        if key not in crafted:
            generator = keyed_generator("transfer", run.config.seed, attack.text)
            crafted[key] = attack(plain, x, y, generator=generator)
        view = model.view(attack)
        with torch.no_grad():
            right = (view(x).argmax(1) == y) & (view(crafted[key]).argmax(1) == y)
        shares.append(100 * right.float().mean().item())
    return statistics.mean(shares)


def main() -> None:
    """A table: a row a defense, a column a sequence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("--defenses", default="at,air,mid,mola-router,trades", help="names, with commas")
    parser.add_argument("--dataset", default="digits")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = given.defenses.split(",")
    crafted: Points = {}
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in inventory(given.runs_dir):
        if entry.state != "complete":
            continue
        run = load_run(entry.path)
        config = run.record.config
        if config["dataset"] == given.dataset and config["defense"] in wanted:
            sequence = " → ".join(config["sequence"])
            found[config["defense"], run.record.regime][sequence].append(survived(run, crafted))
    sequences = sorted({sequence for rows in found.values() for sequence in rows})
    for number, sequence in enumerate(sequences, 1):
        print(f"{number}. {sequence}")
    print("| defense | regime | " + " | ".join(map(str, range(1, len(sequences) + 1))) + " |")
    print("|---|---" + "|--:" * len(sequences) + "|")
    for (defense, regime), rows in sorted(found.items()):
        cells = [
            f"{statistics.mean(rows[one]):.1f} ± {statistics.stdev(rows[one]):.1f}"
            if len(rows[one]) > 1
            else "–"
            for one in sequences
        ]
        print(f"| `{defense}` | {regime} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
