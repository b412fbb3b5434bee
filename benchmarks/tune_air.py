"""Chooses AIR's weights and noise on the digits' validation split; the test set is not read.

    python benchmarks/tune_air.py --trials 3 --seeds 1

Random search, one thread a process. A trial is scored by the mean robust accuracy on validation over the
attacks of both sequences after their last stage. Prints every trial, best first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
from typing import Any

SEQUENCES = ("fgsm,pgd,cw", "pgd,cw,fgsm")
SPACE: dict[str, tuple[float, ...]] = {
    "lambda_i": (0.25, 0.5, 1.0, 2.0),
    "lambda_a": (0.25, 0.5, 1.0, 2.0),
    "lambda_r": (0.25, 0.5, 1.0, 2.0),
    "sigma": (0.05, 0.1, 0.2),
}


def score(job: tuple[str, dict[str, Any], int]) -> tuple[list[float], float] | None:
    """Robust accuracy on validation by attack and sequence, and clean accuracy; None if training diverged."""
    import torch

    from advbench.config import Options
    from advbench.data import TensorLoader, load_dataset
    from advbench.evaluate import evaluate
    from advbench.resolve import bound_attacks, resolve
    from advbench.saved import new_classifier
    from defenses import TrainingDivergedError, registry

    torch.set_num_threads(1)
    name, parameters, seed = job
    data = load_dataset("digits")
    found, clean = [], []
    for sequence in SEQUENCES:
        options = Options.of({"defense": name, "sequence": sequence, "seed": seed, "set": parameters})
        config = resolve(options, data)
        attacks = bound_attacks(config)["seen"]
        classifier = new_classifier(config, data.image_shape, data.num_classes)
        loader = TensorLoader(data.train, config.plan.batch_size, seed=seed)
        registry.build("standard", classifier, seed=seed).fit(loader, [], plan=config.pretrain)
        defense = registry.build(name, classifier, seed=seed, parameters=config.params)
        stages = [[attack] for attack in attacks] if config.regime == "continual" else [attacks]
        try:
            for stage in stages:
                defense.fit(loader, stage, plan=config.stage_plan)
        except TrainingDivergedError:
            return None
        row = evaluate(
            defense.view,
            data.validation,
            [(attack, len(data.validation)) for attack in attacks],
            stage=len(stages),
            seed=seed,
        )
        found += [float(robust.mean()) for robust in row.robust]
        clean.append(float(row.clean.mean()))
    return found, sum(clean) / len(clean)


def main() -> None:
    """Run the search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    draw = random.Random(0)
    trials: list[tuple[str, dict[str, Any]]] = [("at", {}), ("joint", {}), ("air", {})]
    trials += [
        ("air", {key: draw.choice(values) for key, values in SPACE.items()}) for _ in range(arguments.trials)
    ]
    # Seeds apart from those that are reported.
    jobs = [(name, values, 100 + seed) for name, values in trials for seed in range(arguments.seeds)]
    results: dict[int, list[tuple[list[float], float]]] = {}
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as workers:
        for number, result in enumerate(workers.imap(score, jobs, chunksize=1)):
            print(f"{number + 1}/{len(jobs)} {jobs[number]}: {result}", file=sys.stderr, flush=True)
            if result is not None:
                results.setdefault(number // arguments.seeds, []).append(result)
    lines = []
    for index, (name, values) in enumerate(trials):
        mine = results.get(index, [])
        if len(mine) < arguments.seeds:
            lines.append((0.0, f"diverged  {name} {values}"))
            continue
        columns = [
            100 * sum(column) / len(mine) for column in zip(*(robust for robust, _ in mine), strict=True)
        ]
        clean = 100 * sum(value for _, value in mine) / len(mine)
        detail = " ".join(f"{value:5.1f}" for value in columns)
        lines.append((sum(columns) / len(columns), f"clean {clean:5.1f}  robust {detail}  {name} {values}"))
    for mean, line in sorted(lines, reverse=True):
        print(f"{mean:5.1f}  {line}")


if __name__ == "__main__":
    main()
