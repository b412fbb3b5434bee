"""What a verification found: point by point, in words, and the verdict."""

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
from leaderboards import Record
from leaderboards.audits.comparisons import LARGEST_P

MOST_DISCORDANCE = 0.01
"""On another machine: the share of points whose outcome may differ, of an attack on a stage and of all."""
FEW = 2
"""On another machine than the record's, one point that differs refutes nothing: rounding explains it."""
ENVIRONMENT = ("versions", "python", "platform", "device", "cpu", "threads")
"""What must be the same for bits to be the same."""
SHOWN = 10
"""Points that a line names."""


@dataclass(frozen=True)
class Comparison:
    """One attack (or ``clean``) on one stage, point by point.

    Attributes:
        stage, attack: which; ``probe`` where it is one of the audit's, ``transferred`` where that was
            crafted on a surrogate.
        points: test points that the record has of it.
        compared: of those that were compared.
        record_only: points that survive in the record and not here.
        here_only: points that survive here and not in the record.
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
        looked_at: NDArray[np.bool_],
        *,
        probe: bool = False,
        transferred: bool = False,
    ) -> Comparison:
        """Compare outcomes (n,) where they were ``looked_at`` (n,)."""
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
        """Points whose outcomes differ."""
        return len(self.record_only) + len(self.here_only)

    @property
    def label(self) -> str:
        """Stage and attack in words."""
        probe = "transferred probe of " if self.transferred else "probe of " if self.probe else ""
        return f"{probe}stage {self.stage}, {self.attack}"

    def line(self) -> str:
        """What differs, in which direction, and where."""
        parts = [f"{self.label}: {self.discordant} of {self.compared} points differ"]
        for points, what in ((self.record_only, "robust only in the record"), (self.here_only, "only here")):
            if points:
                parts.append(f"{len(points)} {what} ({_shown(points)})")
        return "; ".join(parts)


@dataclass
class Report:
    """A verification.

    Attributes:
        run: the record's id.
        path: its directory.
        how: ``re-evaluated`` or ``retrained``.
        checked: what was checked beside outcomes, in words.
        faults: what refutes the run, a line each; none confirms it.
        comparisons: what was compared point by point.
        notes: what else is worth knowing.
        accuracies: of the final model, clean and under a cheap attack, on measured test points and on others.
        not_looked_at: what the verdict says nothing about.
        complete: whether enough was looked at to mark the run as verified.
        sample: what chose the points, to repeat it.
        machine: where this was found.
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
        """Whether nothing speaks against the run."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """``confirmed`` or ``refuted``."""
        return "confirmed" if self.confirmed else "refuted"

    @property
    def compared(self) -> int:
        """Outcomes that were compared."""
        return sum(one.compared for one in self.comparisons)

    @property
    def discordant(self) -> int:
        """Outcomes that differ."""
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
    """The lines that refute.

    Where every bit should be the same, a single outcome that differs refutes. Elsewhere rounding explains up
    to 1 % of an attack's points and of all points, as long as it favours neither side: see `_one_sided`.

    Args:
        comparisons: outcomes point by point.
        same_machine: whether every bit should be the same.
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
    """A line where differences favour the record more often than rounding would.

    A point counts once, for the side that most of its outcomes favour: one that is wrong clean falls under
    every attack. Rounding favours both sides alike (sign test, one-sided, p < 0.01).
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


def machine_of(device: torch.device, data: DataSet) -> dict[str, Any]:
    """Where a verification was made."""
    facts = describe(device, data)
    return {key: facts[key] for key in (*ENVIRONMENT, "commit")}


def differences(record: Record, machine: Mapping[str, Any]) -> list[str]:
    """In what this machine differs from the record's, in words; none where bits should be the same."""
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
