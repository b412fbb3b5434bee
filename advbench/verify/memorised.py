"""Checks whether a model has memorised test points, by its accuracy on measured and on other points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.stats import fisher_exact

from advbench.audit.memorisation import CODE
from advbench.data import Split
from advbench.data.registry import DATASETS
from advbench.evaluation.evaluate import evaluate
from advbench.verify.report import Report
from advbench.verify.subject import Looked, Subject
from attacks_pool import Attack
from attacks_pool.calling.randomness import keyed_generator
from leaderboards import CLEAN
from leaderboards.audits.comparisons import LARGEST_P, LEAST_DIFFERENCE

MOST_POINTS, MOST_ATTACKED = 2000, 500
"""The most points of each group, clean and under an attack; each verification draws them anew."""
LEAST_NEAR_ALL = 0.02
FEWER_ERRORS = 4
CHEAP = 100
"""The most forward passes per point of an attack that is repeated on other points."""
MEASURED, TRAINING, VALIDATION, UNMEASURED = (
    "measured test points",
    "training points",
    "validation points",
    "unmeasured test points",
)


@dataclass(frozen=True)
class PointGroup:
    """Points that are measured together; ``numbers`` are their indices in ``split``."""

    name: str
    split: Split
    numbers: range

    def drawn(self, seed: int) -> Split:
        """At most ``MOST_POINTS`` of the points, in a random order determined by ``seed``."""
        generator = keyed_generator("memorised", seed, self.name, self.numbers.start)
        chosen = torch.randperm(len(self.numbers), generator=generator)[:MOST_POINTS] + self.numbers.start
        return self.split.take(chosen)


@dataclass(frozen=True)
class Found:
    """The result for a group: ``right`` of ``points`` points are right under ``attack`` (or ``clean``)."""

    group: str
    attack: str
    points: int
    right: int

    @property
    def accuracy(self) -> float:
        """right / points."""
        return self.right / self.points

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % of {self.points} {self.group}"


def check_memorised(subject: Subject, looked: Looked, report: Report, seed: int) -> None:
    """Compare the final model's accuracy on measured test points with that on other points.

    The others are test points that no attack of the record used, if there are any, the validation points (a
    tenth of the training images, on which no defense trains) and training points. An honest model is equally
    good on all test points, and no better on test points than on its training points. All groups are
    predicted clean and under the cheapest attack of the record.

    The report gets all accuracies, and a fault if the measured points lead by 5 percentage points, or by 2
    with a quarter of the errors, and p is below 0.01 over the number of comparisons (Fisher's exact test,
    one-sided). A folder's test images may be easier than its training images: for folders, only unmeasured
    test points can refute a run.

    This cannot detect a model that learnt only a few test points, a slight gain from learning test points
    along with all training points, or a model that also learnt the validation points. Only retraining shows
    how a model was trained.
    """
    attack = _cheapest(subject)
    measured, others = _groups(subject)
    splits = {group.name: group.drawn(seed) for group in (*measured, *others)}
    found = {
        name: list(_accuracies(looked, name, split, attack)) for name, split in splits.items() if len(split)
    }
    report.accuracies = [{**vars(one), "accuracy": one.accuracy} for some in found.values() for one in some]
    pairs = [
        (one.name, other.name)
        for place, one in enumerate(measured)
        for other in (*measured[place + 1 :], *others)
    ]
    compared = [
        both
        for name, rival in pairs
        if name in found and rival in found
        for both in zip(found[name], found[rival], strict=True)
    ]
    own = subject.run.dataset not in DATASETS
    for line, rival in better(compared):
        harder = own and rival in (TRAINING, VALIDATION)
        (report.notes if harder else report.faults).append(f"{CODE}: {line}")
    report.checked.append("accuracy on test points beside others")


def better(pairs: Sequence[tuple[Found, Found]]) -> Iterator[tuple[str, str]]:
    """Lines for the pairs whose first accuracy is significantly higher, each with the other group's name.

    Args:
        pairs: all compared pairs; the first of each has measured test points.
    """
    for one, other in pairs:
        if not _far(one, other):
            continue
        table = [[one.right, one.points - one.right], [other.right, other.points - other.right]]
        p = float(fisher_exact(table, alternative="greater").pvalue)
        if p < LARGEST_P / len(pairs):
            yield f"{one.attack}: {one}, {other} (p {p:.2g})", other.group


def _far(one: Found, other: Found) -> bool:
    """Whether the lead is larger than between two fair samples of images, for any number of points.

    That is 5 percentage points or, close to 100 %, 2 percentage points and a quarter of the errors.
    """
    lead = one.accuracy - other.accuracy
    fewer = (1 - other.accuracy) >= FEWER_ERRORS * (1 - one.accuracy)
    return lead >= LEAST_DIFFERENCE or (lead >= LEAST_NEAR_ALL and fewer)


def shown(accuracies: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each attack: its accuracy on every group of points."""
    for attack in dict.fromkeys(one["attack"] for one in accuracies):
        parts = [
            f"{100 * one['accuracy']:.1f} % of {one['points']} {one['group']}"
            for one in accuracies
            if one["attack"] == attack
        ]
        yield f"{attack}: {', '.join(parts)}"


def _cheapest(subject: Subject) -> Attack | None:
    """The attack of the record with the fewest passes; None if all are expensive or of unknown cost."""
    costs = [(cost[0], attack) for attack in subject.every if (cost := attack.info.passes(attack.knobs))]
    cheap = [pair for pair in costs if pair[0] <= CHEAP]
    return min(cheap, key=lambda pair: pair[0])[1] if cheap else None


def _groups(subject: Subject) -> tuple[list[PointGroup], list[PointGroup]]:
    """The measured test points, in parts with the same attacks, and the groups to compare them with."""
    data = subject.run.data
    ends = sorted({0, *(count for _, count in subject.measured)})
    measured = []
    for start, stop in pairwise(ends):
        name = MEASURED if len(ends) == 2 else f"{MEASURED} {start} to {stop - 1}"
        measured.append(PointGroup(name, data.test, range(start, stop)))
    others = [
        PointGroup(UNMEASURED, data.test, range(ends[-1], len(data.test))),
        PointGroup(VALIDATION, data.validation, range(len(data.validation))),
        PointGroup(TRAINING, data.train, range(len(data.train))),
    ]
    return measured, [group for group in others if len(group.numbers)]


def _accuracies(looked: Looked, name: str, split: Split, attack: Attack | None) -> Iterator[Found]:
    attacked = min(len(split), MOST_ATTACKED)
    pairs = [] if attack is None else [(attack, attacked)]
    row = evaluate(looked.view, split, pairs, **looked.how)
    yield Found(name, CLEAN, len(split), int(row.clean.sum()))
    if attack is not None:
        yield Found(name, attack.text, attacked, int(row.robust[0].sum()))
