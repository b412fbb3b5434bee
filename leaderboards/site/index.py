"""The first page: comparison groups, their rows as cells, and the data that the script sorts and filters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from leaderboards.ranking import Row, canonical
from leaderboards.site.fields import (
    LOWER_IS_BETTER,
    heading,
    interval_of,
    metric_names,
    ranked_by,
    scale_of,
    shown,
    trust_of,
)
from leaderboards.site.names import attack_labels
from leaderboards.site.plot import Plot, Point, trade_off
from leaderboards.statistics import Summary

OK, SUSPECT, AWARE = 0, 1, 2
SECTIONS: Final = (
    "",
    "Suspect or invalid: shown, never ranked above an honest row",
    "Target-aware: told which attack it faces, ranked apart",
)
FILTERS: Final = ("dataset", "defense", "regime", "verdict", "trust")
_ROWS_AT_FIRST: Final = 1000
"""In all tables together: what a browser lays out at once, with or without script."""
_NO_BEST: Final = frozenset({"unseen_gap"})


@dataclass(frozen=True)
class Column:
    """A column; ``up`` says that a first click sorts from the smallest."""

    key: str
    label: str
    unit: str
    numeric: bool
    up: bool


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: the main text, smaller lines below, and what it is sorted by."""

    main: str
    sub: str = ""
    key: float | str | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table; ``runs`` are its seeds and the directories of their pages."""

    section: int
    cells: list[Cell]
    runs: list[tuple[int, str]]
    facets: tuple[str, ...]

    def packed(self) -> list[Any]:
        """As the script reads it."""
        cells = [[cell.main, cell.sub, cell.key, int(cell.best)] for cell in self.cells]
        return [self.section, cells, self.runs, self.facets]


@dataclass(frozen=True)
class Group:
    """Rows that are compared with one another."""

    number: int
    title: str
    sequence: tuple[str, ...]
    fingerprint: str
    protocol: str
    columns: list[Column]
    lines: list[Line]
    plot: Plot | None
    interval: bool
    ranked_by: str
    tied: bool

    def sections(self, most: int) -> list[tuple[int, str, list[Line]]]:
        """The first ``most`` lines by section, without empty sections."""
        first = self.lines[:most]
        parts = [
            (number, name, [line for line in first if line.section == number])
            for number, name in enumerate(SECTIONS)
        ]
        return [part for part in parts if part[2]]


@dataclass(frozen=True)
class Index:
    """The whole page; ``page`` is how many lines a table shows before it is asked for more."""

    groups: list[Group]
    facets: dict[str, list[str]]
    page: int

    @property
    def count(self) -> int:
        """Lines in all tables."""
        return sum(len(group.lines) for group in self.groups)

    def data(self) -> dict[str, Any]:
        """What the script gets: everything that it can show, sort and filter by."""
        return {
            "page": self.page,
            "sections": SECTIONS,
            "filters": FILTERS,
            "groups": [
                {
                    "text": f"{group.title} {' '.join(group.sequence)} {group.protocol} {group.fingerprint}",
                    "columns": [
                        [column.key, int(column.numeric), int(column.up)] for column in group.columns
                    ],
                    "lines": [line.packed() for line in group.lines],
                }
                for group in self.groups
            ],
        }


def make_index(rows: Sequence[Row], pages: Sequence[list[str]]) -> Index:
    """The page of ``rows``, in their order; ``pages[i]`` are the directories of row i's runs."""
    numbered: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        numbered.setdefault(row.comparison, []).append(number)
    groups = [
        _group(place, [rows[number] for number in members], [pages[number] for number in members])
        for place, members in enumerate(numbered.values())
    ]
    lines = [line for group in groups for line in group.lines]
    facets = {name: sorted({line.facets[place] for line in lines}) for place, name in enumerate(FILTERS)}
    return Index(groups, facets, page=max(10, min(100, _ROWS_AT_FIRST // max(len(groups), 1))))


def title_of(row: Row) -> str:
    """Data set, sequence by names, model: what its comparison group is called."""
    return " · ".join(filter(None, [row.dataset, " → ".join(attack_labels(row.sequence)), row.model]))


def _group(number: int, rows: list[Row], pages: list[list[str]]) -> Group:
    metrics = metric_names(rows)
    best = {name: _best(name, rows) for name in metrics}
    settings = differing_settings(rows)
    ranks = _rank_texts(rows)
    lines = [
        _line(row, rank, own, metrics, best, directories)
        for row, rank, own, directories in zip(rows, ranks, settings, pages, strict=True)
    ]
    # The order of the rows is the ranking's; sorting is stable, so it only parts the sections.
    pairs = sorted(zip(rows, lines, strict=True), key=lambda pair: pair[1].section)
    first = rows[0]
    return Group(
        number=number,
        title=title_of(first),
        sequence=first.sequence,
        fingerprint=first.fingerprint,
        protocol=first.protocol,
        columns=_columns(metrics),
        lines=[line for _, line in pairs],
        plot=trade_off(_points(pairs)),
        ranked_by=ranked_by(rows).replace("_", " "),
        tied=any(rank.endswith("=") for rank in ranks),
        interval=any(interval_of(one) for row in rows for one in row.metrics.values() if one is not None),
    )


def _columns(metrics: Sequence[str]) -> list[Column]:
    return [
        Column("rank", "rank", "", True, True),
        Column("defense", "defense", "", False, True),
        Column("regime", "regime", "", False, True),
        *(Column(name, heading(name), _unit(name), True, name in LOWER_IS_BETTER) for name in metrics),
        Column("training_seconds", "training", "s", True, True),
        Column("seeds", "seeds", "", False, False),
        Column("verdict", "audit", "", False, True),
        Column("trust", "trust", "", False, False),
    ]


def _unit(name: str) -> str:
    """Beside the heading; that shares are in percent is said once, in the caption."""
    return scale_of(name)[2].replace("%", "")


def section_of(row: Row) -> int:
    """Where a row stands: ranked, suspect or invalid, target-aware."""
    if row.target_aware:
        return AWARE
    return OK if row.verdict == "ok" else SUSPECT


def _rank_texts(rows: Sequence[Row]) -> list[str]:
    """``2``, ``2=`` where a rank is shared, a dash where there is none."""
    taken = Counter((row.target_aware, row.rank) for row in rows)
    shared = ["=" if taken[row.target_aware, row.rank] > 1 else "" for row in rows]
    return ["–" if row.rank is None else f"{row.rank}{sign}" for row, sign in zip(rows, shared, strict=True)]


def _line(
    row: Row,
    rank: str,
    settings: str,
    metrics: Sequence[str],
    best: Mapping[str, float | None],
    pages: list[str],
) -> Line:
    seconds = row.cost.get("training_seconds")
    regime = f"{row.regime}, target-aware" if row.target_aware else row.regime
    cells = [
        Cell(rank, key=row.rank),
        Cell(row.defense, settings, row.defense.lower()),
        Cell(regime, key=regime),
        *(_metric(name, row.metrics.get(name), best[name], row) for name in metrics),
        Cell("–") if seconds is None else Cell(f"{seconds.mean:,.0f}", key=seconds.mean),
        Cell(str(len(row.seeds)), key=len(row.seeds)),
        Cell(row.verdict, ", ".join(row.flags), ("ok", "suspect", "invalid").index(row.verdict)),
        Cell(trust_of(row), key=trust_of(row)),
    ]
    facets = (row.dataset, row.defense, row.regime, row.verdict, trust_of(row))
    return Line(section_of(row), cells, list(zip(row.seeds, pages, strict=True)), facets)


def _metric(name: str, summary: Summary | None, best: float | None, row: Row) -> Cell:
    if summary is None:
        return Cell("–")
    parts = [] if summary.std is None else [f"± {shown(summary.std, name)}"]
    if (interval := interval_of(summary)) is not None:
        parts.append(f"[{shown(interval[0], name)}, {shown(interval[1], name)}]")
    wins = section_of(row) == OK and best is not None and shown(summary.mean, name) == shown(best, name)
    return Cell(shown(summary.mean, name), "\n".join(parts), summary.mean, wins)


def _best(name: str, rows: Sequence[Row]) -> float | None:
    """The best mean among the rows that are ranked together, where more than one has it."""
    found = [row.metrics.get(name) for row in rows if section_of(row) == OK]
    means = [summary.mean for summary in found if summary is not None]
    if len(means) < 2 or name in _NO_BEST:
        return None
    return min(means) if name in LOWER_IS_BETTER else max(means)


def _points(pairs: Sequence[tuple[Row, Line]]) -> list[Point]:
    """Clean against robust accuracy of the lines that have both."""
    points = []
    for number, (row, line) in enumerate(pairs):
        clean, robust = row.metrics.get("clean_accuracy"), row.metrics.get("average_robust_accuracy")
        if clean is None or robust is None:
            continue
        more = [text for text in (line.cells[1].sub, "joint" if row.regime == "joint" else "") if text]
        label = f"{row.defense} ({', '.join(more)})" if more else row.defense
        kind = ("ok", "suspect", "aware")[line.section]
        points.append(Point(number, label, clean.mean, robust.mean, clean.std, robust.std, kind))
    return points


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """For each row the settings in which rows of its defense and regime differ, as ``name=value, …``."""
    every = [_settings(row) for row in rows]
    values: dict[tuple[str, str], dict[str, set[str | None]]] = {}
    members: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        members.setdefault((row.defense, row.regime), []).append(number)
    for kind, numbers in members.items():
        names = {name for number in numbers for name in every[number]}
        values[kind] = {name: {every[number].get(name) for number in numbers} for name in names}
    return [
        ", ".join(
            f"{name}={value}"
            for name, value in every[number].items()
            if len(values[row.defense, row.regime][name]) > 1
        )
        for number, row in enumerate(rows)
    ]


def _settings(row: Row) -> dict[str, str]:
    plan = {f"plan.{name}": value for name, value in row.plan.items()}
    pretrain = row.pretrain if isinstance(row.pretrain, dict) else {"": row.pretrain}
    before = {f"pretrain.{name}".rstrip("."): value for name, value in pretrain.items()}
    training = {"training": list(row.training)}
    whole: dict[str, Any] = {**row.params, **plan, **before, **training}
    return {name: value if isinstance(value, str) else canonical(value) for name, value in whole.items()}
