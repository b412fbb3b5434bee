"""Defenses of the first leaderboard under points that were crafted on the plain classifier they started from.

    python benchmarks/first/transfer.py runs/first --defenses at,air,mid

Each attack of a run's sequence is run on row 0's model, and what it finds is judged on the last row's. Runs
of one seed share that classifier, so that all defenses meet the same points. In percent of all test points,
mean and standard deviation over seeds. A search for the smallest perturbation stops at row 0's boundary, and
its points hardly transfer. Needs the weights, which leaderboards/results does not have.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench.config.resolve import bound_attacks
from advbench.runs.saved import Run, load_run
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.verifier import verify
from leaderboards import inventory

Points = dict[tuple[bytes, str], Tensor]


def digest(model: nn.Module) -> bytes:
    """Equal for models of the same weights."""
    return b"".join(value.detach().cpu().numpy().tobytes() for value in model.state_dict().values())


def survived(run: Run, crafted: Points) -> list[float]:
    """Percent of points that stay right, for each attack of the sequence."""
    x, y = run.test_data
    plain, model = run.stage(0), run.model
    weights = digest(plain)
    shares = []
    for attack in bound_attacks(run.config)["seen"]:
        key = weights, attack.text
        if key not in crafted:
            generator = keyed_generator("transfer", run.config.seed, attack.text)
            crafted[key] = attack(plain, x, y, generator=generator)
        verdict = verify(
            model.view(attack),
            x,
            y,
            crafted[key],
            norm=attack.info.norm,
            eps=attack.eps,
            kind=attack.info.kind,
        )
        shares.append(100 * verdict.robust.float().mean().item())
    return shares


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def main() -> None:
    """A table a sequence: a row a defense, a column an attack."""
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
    tables: dict[tuple[str, ...], dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for entry in inventory(given.runs_dir):
        if entry.state != "complete":
            continue
        run = load_run(entry.path)
        if run.config.dataset == given.dataset and run.config.defense in wanted:
            name = f"`{run.config.defense}`, {run.record.regime}"
            tables[tuple(run.config.sequence)][name].append(survived(run, crafted))
    for sequence, found in tables.items():
        print(f"| transferred | {' | '.join(sequence)} | all | seeds |")
        print("|---" + "|--:" * (len(sequence) + 2) + "|")
        for name, seeds in found.items():
            columns = [*zip(*seeds, strict=True), tuple(map(statistics.mean, seeds))]
            cells = [spread(list(column)) for column in columns]
            print(f"| {name} | {' | '.join(cells)} | {len(seeds)} |")
        print()


if __name__ == "__main__":
    main()
