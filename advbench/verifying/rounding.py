"""Whether rounding alone explains a difference: training again, several times, with rounding that differs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from advbench.audit.comparisons import LARGEST_P, LEAST_DIFFERENCE
from advbench.benchmark import run as run_benchmark
from advbench.events import Listener
from advbench.saved import Run
from advbench.verifying.report import Comparison
from attacks_pool.text import attack_name
from leaderboards import CLEAN

AGAIN = 4
"""Trainings beside the first one, each with a learning rate that is another millionth larger."""
NUDGE = 1e-6


@dataclass(frozen=True)
class Spread:
    """What trainings that differ in rounding alone make of one attack on one stage.

    Attributes:
        comparison: the record beside the first of them.
        recorded: the record's accuracy.
        found: theirs.
    """

    comparison: Comparison
    recorded: float
    found: tuple[float, ...]

    @property
    def p(self) -> float:
        """Of a t-test: t = (recorded − mean) / (s √(1 + 1/n)) with n − 1 degrees of freedom, two-sided."""
        n = len(self.found)
        distance = abs(self.recorded - float(np.mean(self.found)))
        spread = float(np.std(self.found, ddof=1)) * float(np.sqrt(1 + 1 / n))
        if not spread:
            return float(not distance)
        return float(2 * student.sf(distance / spread, n - 1))

    @property
    def refutes(self) -> bool:
        """Whether rounding does not explain it: 5 points or more from their mean, and p below 0.01."""
        far = abs(self.recorded - float(np.mean(self.found))) >= LEAST_DIFFERENCE
        return far and self.p < LARGEST_P

    def line(self) -> str:
        """Both accuracies, and what follows."""
        mean, std = 100 * float(np.mean(self.found)), 100 * float(np.std(self.found, ddof=1))
        here = f"{mean:.1f} ± {std:.1f} % in {len(self.found)} trainings that differ in rounding"
        return f"{self.comparison.label}: {100 * self.recorded:.1f} % in the record, {here} (p {self.p:.2g})"


def far_off(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    """What differs by 5 points or more with a paired p below 0.01: too far for the same model."""
    for one in comparisons:
        if abs(_lead(one)) < LEAST_DIFFERENCE:
            continue
        if binomtest(len(one.record_only), one.discordant).pvalue < LARGEST_P:
            yield one


def spreads(
    suspects: Sequence[Comparison], made: Run, options: Mapping[str, Any], listeners: Sequence[Listener]
) -> list[Spread]:
    """Train ``AGAIN`` times more and see how far rounding leads each of ``suspects``.

    The paired test over points takes two models as they are. Training amplifies rounding, so that models of
    the same run on two machines may be as far from each other as those of two seeds: how far, only
    repetitions show.

    Args:
        suspects: comparisons of the record with the first training.
        made: that training.
        options: what it was asked; attacks that nobody suspects are left out.
        listeners: told of each training's events.
    """
    wanted = {one.attack for one in suspects}
    found = {(one.stage, one.attack): [accuracy(made, one)] for one in suspects}
    fewer: dict[str, Any] = {
        key: [text for text in options[key] if text in wanted] or "none" for key in ("unseen", "eval")
    }
    left = {"default", *map(attack_name, [*options["sequence"], *wanted])}
    fewer["points"] = {name: count for name, count in options["points"].items() if name in left}
    for number in range(1, AGAIN + 1):
        with tempfile.TemporaryDirectory(prefix="advbench-verify-") as place:
            nudged = {key: _nudged(options[key], number) for key in ("plan", "pretrain")}
            again = run_benchmark(
                runs_dir=place, listeners=listeners, resume=False, **{**options, **fewer, **nudged}
            )
        for one in suspects:
            found[one.stage, one.attack].append(accuracy(again, one))
    return [
        Spread(one, accuracy(made, one) + _lead(one), tuple(found[one.stage, one.attack])) for one in suspects
    ]


def accuracy(run: Run, one: Comparison) -> float:
    """A run's accuracy where another was compared with it, out of all points."""
    for cell in run.record.cells:
        if (cell.stage, cell.attack) == (one.stage, one.attack):
            return (cell.clean_correct if one.attack == CLEAN else cell.robust) / cell.n
    raise AssertionError(f"no cell for {one.label}")


def _lead(one: Comparison) -> float:
    """By how much the record's accuracy is above the first training's."""
    return (len(one.record_only) - len(one.here_only)) / one.compared


def _nudged(plan: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {**plan, "lr": plan["lr"] * (1 + number * NUDGE)}
