"""Runs of the first leaderboard, attacked again by hand where their results might be too good.

    python benchmarks/first/reattack.py runs/first --seed 0

On the points that AutoAttack has met, and in its norm and budget: what survives the record's own attacks of
that norm together, and what then survives more steps and restarts, other losses, all classes as targets,
5,000 queries three times, and points that were crafted on the other runs' models. A row whose record is sound
loses hardly a point. Needs the weights, which leaderboards/results does not have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from advbench.runs.saved import Run, load_run
from attacks_pool import Attack, pool
from attacks_pool.calling.randomness import keyed_generator
from leaderboards import inventory, read_outcomes, result_of, rows
from leaderboards.boards.labels import labels

AGAIN: dict[str, dict[str, int | str]] = {
    "pgd": {"steps": 500, "restarts": 5},
    "pgd, margin": {"steps": 500, "restarts": 5, "loss": "margin"},
    "pgd, dlr": {"steps": 200, "restarts": 5, "loss": "dlr"},
    "mt-pgd": {"steps": 100, "restarts": 3},
    "pma": {"steps": 200, "restarts": 5},
    "fab-t": {"steps": 200, "restarts": 2},
    "square": {"steps": 5000, "restarts": 3},
}
"""What a row is attacked with again; the name before the comma is the attack's."""


def at_budget(run: Run, limit: int | None) -> tuple[float, int, Tensor]:
    """AutoAttack's eps, its number of points up to ``limit``, and which survive all recorded in its ball."""
    cells = [cell for cell in run.record.cells if cell.stage == run.record.stages[-1].index][1:]
    whole = next(cell for cell in cells if cell.attack.startswith("autoattack"))
    _, robust = read_outcomes(run.path / "outcomes.npz")
    inside = [
        place
        for place, cell in enumerate(cells)
        if cell.threat.norm == "linf" and cell.threat.eps is not None and cell.threat.eps <= whole.threat.eps
    ]
    count = min(whole.n, limit or whole.n)
    return float(whole.threat.eps or 0.0), count, torch.from_numpy(robust[-1, inside, :count]).all(0)


def survivors(run: Run, attack: Attack, source: Run, eps: float, kept: Tensor) -> Tensor:
    """Which of the points ``kept`` survive what ``attack`` finds within eps on the model of ``source``."""
    points = kept.nonzero().flatten()
    if not len(points):
        return kept
    x, y = (one[points] for one in run.test_data)
    generator = keyed_generator("reattack", source.path.name, attack.text)
    x_adv = attack(source.model.view(attack), x, y, generator=generator)
    with torch.no_grad():
        fooled = run.model.view(attack)(x_adv).argmax(1) != y
    # A search for the smallest perturbation may end outside.
    fooled &= (x_adv - x).abs().flatten(1).amax(1) <= eps + 1e-6
    found = kept.clone()
    found[points[fooled]] = False
    return found


def names_of(runs: list[Run]) -> dict[str, str]:
    """What boards call each run: the defense, and the settings that tell it from others of its sequence."""
    board = rows([result_of(run.record) for run in runs])
    return {id_: label for row, label in zip(board, labels(board), strict=True) for id_ in row.runs}


def main() -> None:
    """A table: a row a run, how many points each further attack leaves of what is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--sequence", default="", help="only runs of these attacks, by name: pgd,cw,fgsm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, help="at most so many; by default all that AutoAttack met")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [load_run(entry.path) for entry in inventory(given.runs_dir) if entry.state == "complete"]
    runs = [
        run
        for run in found
        if run.config.dataset == given.dataset
        and run.config.seed == given.seed
        and given.sequence in ("", ",".join(text.partition(":")[0] for text in run.config.sequence))
    ]
    names = names_of(runs)
    print("| defense | regime | sequence | points | recorded | " + " | ".join([*AGAIN, "transferred"]) + " |")
    print("|---|---|---|--:|--:" + "|--:" * (len(AGAIN) + 1) + "|")
    for run in runs:
        eps, points, kept = at_budget(run, given.points)
        counts = [int(kept.sum())]
        for name, knobs in AGAIN.items():
            kept = survivors(run, pool.get(name.partition(",")[0], eps=eps, **knobs), run, eps, kept)
            counts.append(int(kept.sum()))
        for other in runs:
            if other is not run and other.config.sequence == run.config.sequence:
                kept = survivors(run, pool.get("pgd", eps=eps, loss="margin"), other, eps, kept)
        counts.append(int(kept.sum()))
        sequence = " → ".join(text.partition(":")[0] for text in run.config.sequence)
        cells = " | ".join(map(str, [points, *counts]))
        print(f"| {names[run.record.id]} | {run.record.regime} | {sequence} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
