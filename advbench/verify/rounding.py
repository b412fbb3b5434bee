"""Tests whether rounding alone explains a difference, by training several times with different rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from advbench.benchmark.run import run as run_benchmark
from advbench.runs.saved import Run
from advbench.runtime.events import Listener
from advbench.verify.report import Comparison
from leaderboards import CLEAN
from leaderboards.audits.comparisons import LARGEST_P, LEAST_DIFFERENCE
from leaderboards.statistics.naming import attack_name

AGAIN = 4
"""The number of further trainings, each with a learning rate that is another millionth larger."""
IN_DOUBT = 19
"""The total number of trainings for comparisons that these leave in doubt."""
NUDGE = 1e-6


@dataclass(frozen=True)
class RoundingSpread:
    """The results of trainings that differ only in rounding, for one attack on one stage.

    Attributes:
        comparison: the comparison of the record with the first training.
        recorded: the record's accuracy.
        found: the accuracies of the trainings.
        tests: the number of comparisons from which this one was selected.
    """

    comparison: Comparison
    recorded: float
    found: tuple[float, ...]
    tests: int = 1

    @property
    def p(self) -> float:
        """The two-sided p-value of t = (recorded − mean) / (s √(1 + 1/n)) with n − 1 degrees of freedom."""
        n = len(self.found)
        distance = abs(self.recorded - float(np.mean(self.found)))
        spread = float(np.std(self.found, ddof=1)) * float(np.sqrt(1 + 1 / n))
        if not spread:
            return float(not distance)
        return float(2 * student.sf(distance / spread, n - 1))

    @property
    def doubtful(self) -> bool:
        """Whether a single test would refute it: at least 5 points from the mean, p below 0.01."""
        far = abs(self.recorded - float(np.mean(self.found))) >= LEAST_DIFFERENCE
        return far and self.p < LARGEST_P

    @property
    def refutes(self) -> bool:
        """Whether rounding does not explain it: p is also below 0.01 over the number of comparisons."""
        return self.doubtful and self.p < LARGEST_P / self.tests

    def line(self) -> str:
        """One line with both accuracies and the p-value."""
        mean, std = 100 * float(np.mean(self.found)), 100 * float(np.std(self.found, ddof=1))
        here = f"{mean:.1f} ± {std:.1f} % in {len(self.found)} trainings that differ in rounding"
        p = f"p {self.p:.2g}, less than {LARGEST_P / self.tests:.2g} refutes"
        return f"{self.comparison.label}: {100 * self.recorded:.1f} % in the record, {here} ({p})"


def far_off(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    """Comparisons that differ by at least 5 points with a paired p below 0.01: too far for one model."""
    for one in comparisons:
        if abs(_lead(one)) < LEAST_DIFFERENCE:
            continue
        if binomtest(len(one.record_only), one.discordant).pvalue < LARGEST_P:
            yield one


def spreads(
    suspects: Sequence[Comparison],
    made: Run,
    options: Mapping[str, Any],
    listeners: Sequence[Listener],
    *,
    tests: int,
) -> list[RoundingSpread]:
    """Train ``AGAIN`` more times and measure how far rounding moves each of ``suspects``.

    The paired test over points treats the two models as fixed. Training amplifies rounding, so that models of
    the same run on two machines may differ as much as those of two seeds; only repetitions show how much. The
    standard deviation of a few repetitions is uncertain, and suspects are the most extreme of many
    comparisons. So suspects in doubt after ``AGAIN`` trainings, and not refuted, get up to ``IN_DOUBT``.

    Args:
        suspects: comparisons of the record with the first training.
        made: the first training.
        options: its options; attacks without suspects are left out.
        listeners: called with each training's events.
        tests: the number of comparisons from which the suspects were selected.
    """
    accuracies = {one.label: [accuracy(made, one)] for one in suspects}

    def found() -> list[RoundingSpread]:
        return [
            RoundingSpread(one, accuracy(made, one) + _lead(one), tuple(accuracies[one.label]), tests)
            for one in suspects
        ]

    def repeat(wanted: Sequence[Comparison], numbers: Iterable[int]) -> None:
        for number in numbers:
            again = _again(wanted, options, listeners, number)
            for one in wanted:
                accuracies[one.label].append(again[one.label])

    repeat(suspects, range(1, AGAIN + 1))
    first = found()
    doubtful = [one.comparison for one in first if one.doubtful]
    if doubtful and not any(one.refutes for one in first):
        repeat(doubtful, range(AGAIN + 1, IN_DOUBT + 1))
    return found()


def _again(
    wanted: Sequence[Comparison], options: Mapping[str, Any], listeners: Sequence[Listener], number: int
) -> dict[str, float]:
    """The accuracies, by the comparison's label, of a training with different rounding."""
    attacks = {one.attack for one in wanted}
    fewer: dict[str, Any] = {
        key: [text for text in options[key] if text in attacks] or "none" for key in ("unseen", "eval")
    }
    left = {"default", *map(attack_name, [*options["sequence"], *attacks])}
    fewer["points"] = {name: count for name, count in options["points"].items() if name in left}
    nudged = {key: _nudged(options[key], number) for key in ("plan", "pretrain")}
    with tempfile.TemporaryDirectory(prefix="advbench-verify-") as place:
        again = run_benchmark(
            runs_dir=place, listeners=listeners, resume=False, **{**options, **fewer, **nudged}
        )
        return {one.label: accuracy(again, one) for one in wanted}


def accuracy(run: Run, one: Comparison) -> float:
    """A run's accuracy, over all points, for the stage and attack of a comparison."""
    for cell in run.record.cells:
        if (cell.stage, cell.attack) == (one.stage, one.attack):
            return (cell.clean_correct if one.attack == CLEAN else cell.robust) / cell.n
    raise AssertionError(f"no cell for {one.label}")


def _lead(one: Comparison) -> float:
    """The record's accuracy minus that of the first training."""
    return (len(one.record_only) - len(one.here_only)) / one.compared


def _nudged(plan: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {**plan, "lr": plan["lr"] * (1 + number * NUDGE)}
