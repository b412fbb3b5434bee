"""Chooses a defense's parameters on the validation split, as a search file says; the test set is not read.

    python benchmarks/tune.py benchmarks/tune.yaml --defense mola-router
    python benchmarks/tune.py benchmarks/tune.yaml --page docs/tuning.md

Each search draws trials from its space, always with the values that were the defaults before it among them.
Rounds follow one another: the best trials of a round, by mean robust accuracy on validation over the attacks
of the sequence after the last stage, meet the next with other seeds and more epochs. The best trial of the
last round replaces the defaults only where its paired lead over them is more than twice its standard error,
over seeds or over points, whichever is larger. Everything is determined by the file; what is finished is kept
as lines of JSON in --results and not done again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from advbench.config.files import read_yaml
from advbench.config.options import explain
from attacks_pool.errors import InputError, unknown

Parameters = dict[str, Any]
PRETRAINED: dict[str, Any] = {}
"""Plain classifiers of this process, by what they were trained with."""


class Round(BaseModel):
    """One round: epochs a stage, seeds apart from those that are reported, how many trials come into it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=1)
    seeds: list[int] = Field(min_length=1)
    keep: int | None = Field(default=None, ge=1)


class Search(BaseModel):
    """One defense: ``start`` are the defaults before the search, ``trials`` further draws; all where None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Parameters
    space: dict[str, list[Any]]
    fixed: Parameters = Field(default_factory=dict)
    trials: int | None = Field(default=None, ge=1)
    sequence: str | None = None
    regime: str | None = None
    rounds: list[Round] | None = None
    note: str = ""


class Plan(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    sequence: str
    rounds: list[Round] = Field(min_length=1)
    searches: dict[str, Search]


@dataclass(frozen=True)
class Job:
    """One training: everything that its result depends on beside the code."""

    defense: str
    parameters: Parameters
    sequence: str
    regime: str | None
    dataset: str
    epochs: int
    seed: int

    @property
    def key(self) -> str:
        """The same text for the same job."""
        return json.dumps(vars(self), sort_keys=True)


@dataclass(frozen=True)
class Result:
    """On validation: ``robust`` (A, n) by the names of ``attacks``, ``clean`` (n,); None if diverged.

    ``seconds`` are of processor time, pretraining not counted.
    """

    attacks: list[str]
    clean: NDArray[np.bool_] | None
    robust: NDArray[np.bool_] | None
    seconds: float

    @property
    def score(self) -> float:
        """Mean robust accuracy; a training that diverged is worth nothing."""
        return 0.0 if self.robust is None else float(self.robust.mean())


def read_plan(path: Path) -> Plan:
    """The search file.

    Raises:
        InputError: it is missing, or something in it cannot be.
    """
    try:
        return Plan.model_validate(read_yaml(path, "search file"))
    except ValidationError as error:
        raise InputError(f"search file {path}: {explain(error)}") from None


def trials_of(name: str, search: Search) -> list[Parameters]:
    """The start, then draws from the space without repetition, in an order that the name determines."""
    every = [
        dict(zip(search.space, values, strict=True)) for values in itertools.product(*search.space.values())
    ]
    others = [trial for trial in every if trial != search.start]
    random.Random(f"tune {name}").shuffle(others)
    return [search.start, *(others if search.trials is None else others[: search.trials])]


def measure(job: Job) -> Result:
    """Train on the training split, attack the validation split after the last stage."""
    import torch

    from advbench.config.options import Options
    from advbench.config.resolve import bound_attacks, resolve
    from advbench.data import TensorLoader, load_dataset
    from advbench.evaluation.evaluate import evaluate
    from advbench.runs.saved import new_classifier
    from defenses import TrainingDivergedError, registry

    torch.set_num_threads(1)
    data = load_dataset(job.dataset)
    options = {"defense": job.defense, "sequence": job.sequence, "regime": job.regime, "dataset": job.dataset}
    config = resolve(
        Options.of({**options, "epochs": job.epochs, "seed": job.seed, "set": job.parameters}), data
    )
    attacks = bound_attacks(config)["seen"]
    names = [attack.name for attack in attacks]
    classifier = new_classifier(config, data.image_shape, data.num_classes)
    # Every trial of a seed begins with the same plain classifier.
    begun = f"{config.dataset} {config.model} {config.pretrain} {job.seed}"
    if begun not in PRETRAINED:
        loader = TensorLoader(data.train, config.plan.batch_size, seed=job.seed)
        registry.build("standard", classifier, seed=job.seed).fit(loader, [], plan=config.pretrain)
        PRETRAINED[begun] = copy.deepcopy(classifier)
    classifier = copy.deepcopy(PRETRAINED[begun])
    defense = registry.build(config.defense, classifier, seed=job.seed, parameters=config.params)
    began = time.process_time()
    # A fresh one, as its order depends on how often it was read before.
    loader = TensorLoader(data.train, config.plan.batch_size, seed=job.seed)
    stages = [[attack] for attack in attacks] if config.regime == "continual" else [attacks]
    try:
        for stage in stages:
            defense.fit(loader, stage, plan=config.stage_plan)
    except TrainingDivergedError:
        return Result(names, None, None, time.process_time() - began)
    row = evaluate(
        defense.view,
        data.validation,
        [(attack, len(data.validation)) for attack in attacks],
        stage=len(stages),
        seed=job.seed,
    )
    return Result(names, row.clean, row.robust, time.process_time() - began)


class Results:
    """What is finished, a line of JSON each in one file; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[str, Result] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                tree = json.loads(line)
                self.found[tree["key"]] = _result_of(tree)

    def get(self, job: Job) -> Result:
        """The result of a job, measured now or before."""
        if job.key not in self.found:
            result = measure(job)
            self.found[job.key] = result
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": job.key, **_tree_of(result)}) + "\n")
            said = f"{100 * result.score:.1f} % in {result.seconds:.0f} s"
            print(
                f"{job.defense} {shown(job.parameters)} seed {job.seed}: {said}", file=sys.stderr, flush=True
            )
        return self.found[job.key]


def _tree_of(result: Result) -> dict[str, Any]:
    def bits(outcome: NDArray[np.bool_]) -> str:
        return "".join("1" if right else "0" for right in outcome)

    clean = None if result.clean is None else bits(result.clean)
    robust = None if result.robust is None else [bits(row) for row in result.robust]
    return {"attacks": result.attacks, "clean": clean, "robust": robust, "seconds": result.seconds}


def _result_of(tree: dict[str, Any]) -> Result:
    def bools(text: str) -> NDArray[np.bool_]:
        return np.array([letter == "1" for letter in text], dtype=bool)

    clean = None if tree["clean"] is None else bools(tree["clean"])
    robust = None if tree["robust"] is None else np.stack([bools(row) for row in tree["robust"]])
    return Result(tree["attacks"], clean, robust, tree["seconds"])


@dataclass(frozen=True)
class Trial:
    """One setting in one round, a result a seed."""

    parameters: Parameters
    results: list[Result]

    @property
    def score(self) -> float:
        """Mean robust accuracy over seeds."""
        return float(np.mean([result.score for result in self.results]))

    @property
    def diverged(self) -> bool:
        """Whether any seed did."""
        return any(result.robust is None for result in self.results)

    def lead(self, start: Trial) -> tuple[float, float]:
        """How much better than ``start``, paired by seed and point, and the larger of two standard errors.

        Over seeds it is of their mean differences, where there are two or more; over points, of each point's
        mean difference over seeds and attacks.
        """
        pairs = [
            np.zeros((1, 1))
            if mine.robust is None or other.robust is None
            else mine.robust.astype(float) - other.robust.astype(float)
            for mine, other in zip(self.results, start.results, strict=True)
        ]
        if self.diverged or start.diverged:
            return self.score - start.score, float("inf")
        points = np.mean([pair.mean(0) for pair in pairs], 0)
        errors = [points.std(ddof=1) / np.sqrt(len(points))]
        if len(pairs) > 1:
            errors.append(np.std([pair.mean() for pair in pairs], ddof=1) / np.sqrt(len(pairs)))
        return self.score - start.score, float(max(errors))


def rounds_of(name: str, plan: Plan, results: Results) -> Iterator[tuple[Round, list[Trial]]]:
    """Every round of a search with its trials, the start first."""
    search = plan.searches[name]
    settings = trials_of(name, search)
    for each in search.rounds or plan.rounds:
        if each.keep is not None:
            settings = [search.start, *settings[: each.keep]]
        trials = [
            Trial(
                parameters,
                [
                    results.get(
                        Job(
                            name,
                            {**search.fixed, **parameters},
                            search.sequence or plan.sequence,
                            search.regime,
                            plan.dataset,
                            each.epochs,
                            seed,
                        )
                    )
                    for seed in each.seeds
                ],
            )
            for parameters in settings
        ]
        yield each, trials
        ranked = sorted(trials[1:], key=lambda trial: -trial.score)
        settings = [trial.parameters for trial in ranked]


def shown(parameters: Parameters) -> str:
    """``rank=8, scale=4``."""
    return (
        ", ".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in parameters.items()
        )
        or "defaults"
    )


def verdict(trials: Sequence[Trial]) -> tuple[Trial, str]:
    """What the last round says: the winner, the start itself unless another leads beyond noise, and why."""
    start, *others = trials
    best = max(others, key=lambda trial: trial.score, default=start)
    lead, error = best.lead(start)
    led = f"{shown(best.parameters)} leads by {100 * lead:+.1f} ± {100 * error:.1f} points"
    if lead > 2 * error:
        return best, f"{led}, more than twice its standard error: it replaces {shown(start.parameters)}."
    return start, f"{led}, within twice its standard error: {shown(start.parameters)} stays."


def section(name: str, plan: Plan, results: Results) -> str:
    """Markdown: every trial of every round of one search, and what follows from it."""
    search = plan.searches[name]
    lines = [f"## `{name}`", ""]
    regime = f", regime `{search.regime}`" if search.regime else ""
    fixed = f", {shown(search.fixed)}" if search.fixed else ""
    space = "; ".join(f"{key} in {', '.join(map(str, values))}" for key, values in search.space.items())
    lines.append(
        f"`{search.sequence or plan.sequence}`{regime}{fixed}. Space: {space}. {search.note}".rstrip()
    )
    trials: list[Trial] = []
    for number, (each, trials) in enumerate(rounds_of(name, plan, results), 1):
        seeds = ", ".join(map(str, each.seeds))
        attacks = trials[0].results[0].attacks
        lines += ["", f"Round {number}: {each.epochs} epochs a stage, seed {seeds}.", ""]
        lines += ["| parameters | clean | " + " | ".join(attacks) + " | mean | lead over the start | CPU s |"]
        lines += ["|---" + "|--:" * (len(attacks) + 4) + "|"]
        for index, trial in enumerate(trials):
            lines.append(_line(trial, trials[0] if index else None))
    lines += ["", verdict(trials)[1]]
    return "\n".join(lines)


def _line(trial: Trial, start: Trial | None) -> str:
    seconds = f"{np.mean([result.seconds for result in trial.results]):.0f}"
    attacks = len(trial.results[0].attacks)
    if trial.diverged:
        cells = ["diverged", *["–"] * (attacks + 2), seconds]
    else:
        clean = np.mean([np.mean(result.clean) for result in trial.results if result.clean is not None])
        robust = np.mean([result.robust.mean(1) for result in trial.results if result.robust is not None], 0)
        cells = [f"{100 * value:.1f}" for value in (clean, *robust, trial.score)]
        lead = "the start"
        if start is not None:
            difference, error = trial.lead(start)
            lead = f"{100 * difference:+.1f} ± {100 * error:.1f}"
        cells += [lead, seconds]
    return f"| {shown(trial.parameters)} | " + " | ".join(cells) + " |"


def page(names: Sequence[str], plan: Plan, results: Results, command: str) -> str:
    """The whole page, in Markdown."""
    head = f"""# How the defaults were chosen

Made by `{command}`, whose search file says what was tried. Everything is measured on the
validation split of `{plan.dataset}`, which no training sees, after the last stage, in percent, one thread a
process; seeds differ from those of every reported number, and the test set is not read. A lead is the paired
difference of the mean robust accuracy to the values that were the defaults before the search, with the larger
of its standard errors over points and over seeds. The best trial of the last round becomes the default only
if it leads by more than twice that."""
    return "\n\n".join([head, *(section(name, plan, results) for name in names)]) + "\n"


def main() -> None:
    """Run the searches that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--defense", action="append", help="only this one; may be given several times")
    parser.add_argument("--results", type=Path, default=Path("runs/tuning.jsonl"))
    parser.add_argument("--page", type=Path, help="write the searches to this page of Markdown")
    given = parser.parse_args()
    try:
        plan = read_plan(given.plan)
        for name in given.defense or ():
            if name not in plan.searches:
                raise unknown("search", name, plan.searches)
        results = Results(given.results)
        names = given.defense or list(plan.searches)
        if given.page is None:
            for name in names:
                print(section(name, plan, results), end="\n\n", flush=True)
        else:
            only = "".join(f" --defense {name}" for name in given.defense or ())
            command = f"python benchmarks/tune.py {given.plan}{only} --page {given.page}"
            text = page(names, plan, results, command)
            given.page.parent.mkdir(parents=True, exist_ok=True)
            given.page.write_text(text, encoding="utf-8")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
