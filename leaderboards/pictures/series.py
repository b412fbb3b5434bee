"""Runs as pictures show them: grouped over seeds, each group under a distinguishing name."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboards.boards.ranking import rows
from leaderboards.boards.row import Row
from leaderboards.errors import RecordError
from leaderboards.records.record import Record
from leaderboards.statistics.naming import attack_name, short_names
from leaderboards.statistics.results import canonical

Floats = NDArray[np.float64]
MOST = 12
"""The most defenses that one picture can distinguish."""
LONGEST = 60
"""The most characters of a label."""
SETTINGS = (
    "regime",
    "params",
    "sequence",
    "plan",
    "training",
    "pretrain",
    "model",
    "dataset",
    "protocol",
)
"""Settings that may differ among rows of one defense, the most informative first."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Values in percent over seeds: their mean and sample standard deviation (None for a single seed).

    A value that a seed lacks is NaN.
    """

    mean: Floats
    std: Floats | None

    def __getitem__(self, index: Any) -> "Spread":
        """Some of the values, with the indices of numpy."""
        return Spread(self.mean[index], None if self.std is None else self.std[index])

    def said(self, *index: int) -> str:
        """``52.2`` or ``52.2 ± 1.3``; a value that was not measured is a dash."""
        return numbers(float(self.mean[index]), None if self.std is None else float(self.std[index]))

    @classmethod
    def of(cls, values: Sequence[Floats]) -> "Spread":
        """Make a spread from one array of shares, from 0 to 1, per seed."""
        percent = 100 * np.stack(values)
        return cls(percent.mean(0), percent.std(0, ddof=1) if len(values) > 1 else None)


@dataclass(frozen=True, eq=False)
class Series:
    """One defense under one set of conditions: its leaderboard row, and one record per seed."""

    label: str
    row: Row
    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """The record of the lowest seed; attacks and stages are the same in all."""
        return self.records[0]

    @property
    def clean(self) -> Spread:
        """(T+1,) clean accuracy after each stage."""
        return Spread.of([record.clean_column() for record in self.records])

    @property
    def matrix(self) -> Spread:
        """(T+1, A) robust accuracy, columns in the order of ``first.attacks``."""
        return Spread.of([record.matrix() for record in self.records])

    @property
    def stages(self) -> list[str]:
        """The names of the attacks that each stage trained against; the first is ``plain``."""
        if not self.trained:
            return [self.row.defense]
        stages = sorted(self.first.stages, key=lambda stage: stage.index)
        texts = list(dict.fromkeys(text for stage in stages for text in stage.attacks))
        names = dict(zip(texts, short_names(texts), strict=True))
        return ["+".join(names[text] for text in stage.attacks) or "plain" for stage in stages]

    @property
    def own(self) -> list[tuple[int, int]]:
        """The stage and the column of each attack that the stage trained against, in order."""
        return [
            (stage.index, column)
            for stage in self.first.stages
            for column, entry in enumerate(self.first.attacks)
            if {entry.text, entry.training} & set(stage.attacks)
        ]

    @property
    def trained(self) -> bool:
        """False for a model that was only evaluated: it has one row of R and no sequence."""
        return self.first.regime != "eval"

    @property
    def about(self) -> str:
        """The data set, model and seeds, for a title."""
        seeds = self.row.seeds
        counted = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
        return " · ".join(
            [self.row.dataset, self.row.model, counted] if self.trained else [self.row.dataset, counted]
        )


def numbers(mean: float, std: float | None) -> str:
    """``52.2`` or ``52.2 ± 1.3``; NaN is a dash."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def series_of(records: Iterable[Record]) -> list[Series]:
    """Records grouped over seeds as the leaderboard groups them, in its order.

    Raises:
        RecordError: there are no records, two different ones with one id, or too many defenses for a picture.
    """
    known: dict[str, Record] = {}
    for record in records:
        if known.setdefault(record.id, record).dump() != record.dump():
            raise RecordError(f"two different runs are called {record.id}: draw them in separate pictures")
    if not known:
        raise RecordError("there is no finished run to draw: advbench run makes one")
    found = rows(known.values())
    if len(found) > MOST:
        raise RecordError(f"{len(found)} defenses are too many for one picture: name runs of up to {MOST}")
    return [
        Series(label, row, tuple(known[run] for run in row.runs))
        for label, row in zip(labels(found), found, strict=True)
    ]


def headed(found: Sequence[Series], text: str) -> str:
    """The heading of a picture; it begins with the name of the defense if there is only one."""
    return f"{found[0].label}: {text}" if len(found) == 1 else f"{text[0].upper()}{text[1:]}"


def common(found: Sequence[Series]) -> str:
    """The data set, model and seeds as far as all series share them, for a title."""
    parts = [series.about.split(" · ") for series in found]
    return " · ".join(part for part in parts[0] if all(part in other for other in parts))


def labels(found: Sequence[Row]) -> list[str]:
    """Each row's defense, with the settings that differ among rows of that name, most informative first."""
    chosen = [{"defense": row.defense} for row in found]
    for name in SETTINGS:
        taken = [tuple(label.values()) for label in chosen]
        for row, label in zip(found, chosen, strict=True):
            twins = [other for other, text in zip(found, taken, strict=True) if text == tuple(label.values())]
            if said := _difference(name, row, twins):
                label[name] = said
    return [textwrap.shorten(_joined(list(label.values())), LONGEST, placeholder=" …") for label in chosen]


def _joined(parts: list[str]) -> str:
    return f"{parts[0]} ({', '.join(parts[1:])})" if len(parts) > 1 else parts[0]


def _difference(name: str, row: Row, twins: Sequence[Row]) -> str:
    """How ``row`` differs from ``twins`` in one of its settings, in words; empty if it does not."""
    own, others = getattr(row, name), [getattr(twin, name) for twin in twins]
    if all(other == own for other in others):
        return ""
    if isinstance(own, dict):
        keys = [key for key in own if any(_get(other, key) != own[key] for other in others)]
        return ", ".join(f"{key}={_plain(own[key])}" for key in keys)
    if name == "sequence":
        return ",".join(map(attack_name, own))
    if name == "protocol":
        return f"protocol {own.rpartition(':')[2][:8]}"
    if name == "training":
        texts = [text for row_texts in (own, *others) for text in row_texts]
        return f"trained on {', '.join(short_names(texts, dull=())[: len(own)])}"
    return _plain(own)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)
