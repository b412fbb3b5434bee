"""The index page: comparison groups, their rows as cells, and the data that the script sorts and filters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from leaderboards.boards.labels import differing
from leaderboards.boards.row import Row
from leaderboards.site.fields import interval_of, metric_names, ranked_by
from leaderboards.site.lines import Line, SiteColumn, best_of, columns_of, line_of, rank_texts
from leaderboards.site.plot import Plot, Point, trade_off
from leaderboards.statistics.naming import short_names
from leaderboards.statistics.results import canonical
from leaderboards.statistics.under import spoken

SECTIONS: Final = (
    "",
    "Suspect, invalid or refused: shown, never ranked above an honest row",
    "Target-aware: told which attack it faces, ranked separately",
)
FILTERS: Final = ("dataset", "defense", "regime", "verdict", "trust")
_ROWS_AT_FIRST: Final = 1000
"""The most lines in all tables together that the page shows at first, with or without a script."""


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other."""

    number: int
    title: str
    sequence: tuple[str, ...]
    fingerprint: str
    protocol: str
    columns: list[SiteColumn]
    lines: list[Line]
    plot: Plot | None
    interval: bool
    worst_case: str
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
    """The whole page; ``page`` is how many lines a table shows before the reader requests more."""

    groups: list[Group]
    facets: dict[str, list[str]]
    page: int

    @property
    def count(self) -> int:
        """The number of lines in all tables."""
        return sum(len(group.lines) for group in self.groups)

    def data(self) -> dict[str, Any]:
        """The data for the script: everything that it can show, sort and filter by."""
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
    """The title of a row's comparison group: data set, names of the sequence, model."""
    return " · ".join(filter(None, [row.dataset, " → ".join(short_names(row.sequence)), row.model]))


def _group(number: int, rows: list[Row], pages: list[list[str]]) -> Group:
    standard, others = metric_names(rows)
    best = {name: best_of(name, rows) for name in (*standard, *others)}
    settings = differing(rows, list(map(_settings, rows)))
    ranks = rank_texts(rows)
    lines = [
        line_of(row, rank, own, standard, others, best, directories)
        for row, rank, own, directories in zip(rows, ranks, settings, pages, strict=True)
    ]
    # The rows are in ranking order; the stable sort only separates the sections.
    pairs = sorted(zip(rows, lines, strict=True), key=lambda pair: pair[1].section)
    first = rows[0]
    return Group(
        number=number,
        title=title_of(first),
        sequence=first.sequence,
        fingerprint=first.fingerprint,
        protocol=first.protocol,
        columns=columns_of(standard, others),
        lines=[line for _, line in pairs],
        plot=trade_off(_points(pairs)),
        ranked_by=spoken(ranked_by(rows)),
        tied=any(rank.endswith("=") for rank in ranks),
        worst_case="; ".join(dict.fromkeys(note for row in rows if (note := row.worst_case_note))),
        interval=any(interval_of(one) for row in rows for one in row.metrics.values() if one is not None),
    )


def _settings(row: Row) -> dict[str, str]:
    plan = {f"plan.{name}": value for name, value in row.plan.items()}
    pretrain = row.pretrain if isinstance(row.pretrain, dict) else {"": row.pretrain}
    before = {f"pretrain.{name}".rstrip("."): value for name, value in pretrain.items()}
    whole: dict[str, Any] = {**row.params, **plan, **before, "training": list(row.training)}
    return {name: value if isinstance(value, str) else canonical(value) for name, value in whole.items()}


def _points(pairs: Sequence[tuple[Row, Line]]) -> list[Point]:
    """The clean and robust accuracies of the lines that have both, as points."""
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
