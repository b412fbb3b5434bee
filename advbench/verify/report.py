"""The report of a verification: comparisons point by point, findings in words, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from advbench.data import DataSet
from advbench.runs.machine import describe
from leaderboards import Cell, Record
from leaderboards.audits.comparisons import LARGEST_P

MOST_DISCORDANCE = 0.01
"""The share of points that may differ on another machine, for an attack on a stage and in total."""
FEW = 2
"""The number of points that may differ on another machine in any case, because of rounding."""
ENVIRONMENT = ("versions", "python", "platform", "device", "cpu", "threads")
"""The parts of the environment that must be equal for equal bits."""
SHOWN = 10
"""The most points that a line names."""


@dataclass(frozen=True)
class Comparison:
    """One attack (or ``clean``) on one stage, point by point.

    Attributes:
        stage, attack: the stage and attack; ``probe`` marks the audit's attacks, ``transferred`` those
            crafted on a surrogate.
        points: the number of test points in the record.
        compared: the number of compared points.
        record_only: the points that survive only in the record.
        here_only: the points that survive only here.
    """

    stage: int
    attack: str
    points: int
    compared: int
    record_only: list[int]
    here_only: list[int]
    probe: bool = False
    transferred: bool = False

    @classmethod
    def of(
        cls,
        stage: int,
        attack: str,
        recorded: NDArray[np.bool_],
        here: NDArray[np.bool_],
        looked_at: NDArray[np.bool_] | None = None,
        *,
        probe: bool = False,
        transferred: bool = False,
    ) -> Comparison:
        """Compare outcomes (n,) at the points ``looked_at`` (n,), by default at all."""
        looked_at = np.ones(len(here), dtype=bool) if looked_at is None else looked_at
        return cls(
            stage,
            attack,
            points=len(looked_at),
            compared=int(looked_at.sum()),
            record_only=np.flatnonzero(looked_at & recorded & ~here).tolist(),
            here_only=np.flatnonzero(looked_at & ~recorded & here).tolist(),
            probe=probe,
            transferred=transferred,
        )

    @property
    def discordant(self) -> int:
        """The number of points whose outcomes differ."""
        return len(self.record_only) + len(self.here_only)

    @property
    def label(self) -> str:
        """The stage and attack in words."""
        probe = "transferred probe of " if self.transferred else "probe of " if self.probe else ""
        return f"{probe}stage {self.stage}, {self.attack}"

    def line(self) -> str:
        """One line on how many points differ, in which direction, and which."""
        parts = [f"{self.label}: {self.discordant} of {self.compared} points differ"]
        for points, what in ((self.record_only, "robust only in the record"), (self.here_only, "only here")):
            if points:
                parts.append(f"{len(points)} {what} ({_shown(points)})")
        return "; ".join(parts)


@dataclass
class Report:
    """The report of a verification.

    Attributes:
        run: the record's id.
        path: its directory.
        how: ``re-evaluated`` or ``retrained``.
        checked: the checks other than of outcomes, in words.
        faults: the findings that refute the run, one line each; none confirms it.
        comparisons: the comparisons point by point.
        notes: other remarks.
        accuracies: of the final model, clean and under a cheap attack, on measured test points and on others.
        not_looked_at: what the verdict does not cover.
        complete: whether enough was checked to mark the run as verified.
        sample: how the points were chosen, for repeating the verification.
        machine: the environment of the verification.
        seconds: how long it took.
    """

    run: str
    path: Path
    how: str
    checked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accuracies: list[dict[str, Any]] = field(default_factory=list)
    not_looked_at: list[str] = field(default_factory=list)
    complete: bool = False
    sample: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def confirmed(self) -> bool:
        """Whether nothing refutes the run."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """``confirmed`` or ``refuted``."""
        return "confirmed" if self.confirmed else "refuted"

    @property
    def compared(self) -> int:
        """The number of compared outcomes."""
        return sum(one.compared for one in self.comparisons)

    @property
    def discordant(self) -> int:
        """The number of outcomes that differ."""
        return sum(one.discordant for one in self.comparisons)

    def tree(self) -> dict[str, Any]:
        """The report as JSON values."""
        values = {key: value for key, value in vars(self).items() if key != "comparisons"}
        return {
            **values,
            "path": str(self.path),
            "verdict": self.verdict,
            "compared": self.compared,
            "discordant": self.discordant,
            "comparisons": [{**vars(one), "discordant": one.discordant} for one in self.comparisons],
        }


def judge(comparisons: Sequence[Comparison], *, same_machine: bool) -> list[str]:
    """The lines that refute a run.

    If every bit should be equal, a single different outcome refutes the run. Otherwise rounding explains up
    to 1 % of an attack's points and of all points, as long as it favours neither side: see `_one_sided`.

    Args:
        comparisons: outcomes point by point.
        same_machine: whether every bit should be equal.
    """
    if same_machine:
        return [one.line() for one in comparisons if one.discordant]
    found = [
        one.line()
        for one in comparisons
        if one.discordant >= FEW and one.discordant > MOST_DISCORDANCE * one.compared
    ]
    compared = sum(one.compared for one in comparisons)
    discordant = sum(one.discordant for one in comparisons)
    if not found and discordant >= FEW and discordant > MOST_DISCORDANCE * compared:
        found.append(f"{discordant} of {compared} outcomes differ")
    return found or list(_one_sided(comparisons))


def _one_sided(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """A line if differences favour the record more often than rounding would.

    A point counts once, for the side that most of its outcomes favour, since a point that is wrong clean
    counts against every attack. Rounding favours both sides equally (sign test, one-sided, p < 0.01).
    """
    lead: Counter[int] = Counter()
    for one in comparisons:
        if not one.probe:
            lead.update(one.record_only)
            lead.subtract(one.here_only)
    better = sum(value > 0 for value in lead.values())
    worse = sum(value < 0 for value in lead.values())
    if better + worse == 0:
        return
    p = float(binomtest(better, better + worse, alternative="greater").pvalue)
    if p < LARGEST_P:
        yield (
            f"of {better + worse} points whose outcomes differ, {better} are better in the record "
            f"(p {p:.2g}): rounding favours neither side"
        )


def other_counts(
    label: str, recorded: Cell, here: Mapping[str, int | None], names: Sequence[str]
) -> Iterator[str]:
    """A line for each of the cell's counts ``names`` that differs here; older records lack some."""
    for name in names:
        if (said := getattr(recorded, name)) is not None and said != here[name]:
            yield f"{label}: {name} is {said} in the record, {here[name]} here"


def machine_of(device: torch.device, data: DataSet) -> dict[str, Any]:
    """The environment of a verification."""
    facts = describe(device, data)
    return {key: facts[key] for key in (*ENVIRONMENT, "commit")}


def differences(record: Record, machine: Mapping[str, Any]) -> list[str]:
    """How this machine differs from the record's, in words; empty if bits should be equal."""
    found = []
    for key in ENVIRONMENT:
        before, now = record.environment.get(key), machine[key]
        if before is None:
            found.append(f"{key} unknown (here {now})")
        elif isinstance(before, dict):
            names = sorted({*before, *now})
            found += [
                f"{name} {before.get(name)} (here {now.get(name)})"
                for name in names
                if before.get(name) != now.get(name)
            ]
        elif before != now:
            found.append(f"{key} {before} (here {now})")
    before, now = record.environment.get("commit"), machine.get("commit")
    if before is not None and now is not None and before != now:
        found.append(f"commit {before} (here {now})")
    return found


def _shown(points: Sequence[int]) -> str:
    more = f" and {len(points) - SHOWN} more" if len(points) > SHOWN else ""
    return f"{'point' if len(points) == 1 else 'points'} {', '.join(map(str, points[:SHOWN]))}{more}"
