"""Rows of a leaderboard as cells: texts, and their sorting keys."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from leaderboards.boards.row import Row
from leaderboards.records.trust import LEVELS
from leaderboards.site.fields import heading, interval_of, scale_of, shown
from leaderboards.statistics.brackets import ATTACKED, CERTIFIED, ball_of
from leaderboards.statistics.keys import sign_of
from leaderboards.statistics.summary import Summary

OK, SUSPECT, AWARE = 0, 1, 2
_NO_BEST: Final = frozenset({"unseen_gap"})


@dataclass(frozen=True)
class SiteColumn:
    """A column; with ``up``, the first click sorts in ascending order."""

    key: str
    label: str
    unit: str
    numeric: bool
    up: bool


@dataclass(frozen=True)
class SiteCell:
    """A cell: its main text, smaller lines below, and its sorting key."""

    main: str
    sub: str = ""
    key: float | str | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table; ``runs`` are its seeds and the directories of their pages."""

    section: int
    cells: list[SiteCell]
    runs: list[tuple[int, str]]
    facets: tuple[str, ...]

    def packed(self) -> list[Any]:
        """The line in the form that the script reads."""
        cells = [[cell.main, cell.sub, cell.key, int(cell.best)] for cell in self.cells]
        return [self.section, cells, self.runs, self.facets]


def columns_of(standard: Sequence[str], others: Sequence[str]) -> list[SiteColumn]:
    """The columns of a table with these metrics; those of single methods come last."""

    def metric(name: str) -> SiteColumn:
        return SiteColumn(name, heading(name), _unit(name), True, sign_of(name) < 0)

    return [
        SiteColumn("rank", "rank", "", True, True),
        SiteColumn("defense", "defense", "", False, True),
        SiteColumn("regime", "regime", "", False, True),
        *map(metric, standard),
        SiteColumn("verdict", "audit", "", False, True),
        SiteColumn("trust", "trust", "", False, True),
        SiteColumn("seeds", "seeds", "", False, False),
        SiteColumn("training_seconds", "training", "s", True, True),
        *map(metric, others),
    ]


def _unit(name: str) -> str:
    """The unit beside a heading; the caption says once that shares are in percent."""
    return scale_of(name)[2].replace("%", "")


def section_of(row: Row) -> int:
    """The section of a row: ranked, never ranked above an honest row, or target-aware."""
    if row.target_aware:
        return AWARE
    return OK if row.honest else SUSPECT


def rank_texts(rows: Sequence[Row]) -> list[str]:
    """The ranks as text: ``2``, ``2=`` if a rank is shared, a dash if there is none."""
    taken = Counter((row.target_aware, row.rank) for row in rows)
    shared = ["=" if taken[row.target_aware, row.rank] > 1 else "" for row in rows]
    return ["–" if row.rank is None else f"{row.rank}{sign}" for row, sign in zip(rows, shared, strict=True)]


def line_of(
    row: Row,
    rank: str,
    settings: str,
    standard: Sequence[str],
    others: Sequence[str],
    best: Mapping[str, float | None],
    pages: list[str],
) -> Line:
    """The line of a row; ``best`` holds the values to print bold, ``pages`` the directories of its runs."""

    def metric(name: str) -> SiteCell:
        if (ball := ball_of(name)) is not None:
            return _bounds(ball, row)
        return _metric(name, row.metrics.get(name), best[name], row)

    seconds = row.cost.get("training_seconds")
    cells = [
        SiteCell(rank, "not ranked" if row.refused else "", row.rank),
        SiteCell(row.defense, settings, row.defense.lower()),
        SiteCell(row.regime, key=row.regime),
        *map(metric, standard),
        SiteCell(row.verdict, ", ".join(row.flags), ("ok", "suspect", "invalid").index(row.verdict)),
        SiteCell(row.trust, row.note if row.refused else "", LEVELS.index(row.trust)),
        SiteCell(str(len(row.seeds)), key=len(row.seeds)),
        SiteCell("–") if seconds is None else SiteCell(f"{seconds.mean:,.0f}", key=seconds.mean),
        *map(metric, others),
    ]
    facets = (row.dataset, row.defense, row.regime, row.verdict, row.trust)
    return Line(section_of(row), cells, list(zip(row.seeds, pages, strict=True)), facets)


def _metric(name: str, summary: Summary | None, best: float | None, row: Row) -> SiteCell:
    if summary is None:
        return SiteCell("–")
    parts = [] if summary.std is None else [f"± {shown(summary.std, name)}"]
    if (interval := interval_of(summary)) is not None:
        parts.append(f"[{shown(interval[0], name)}, {shown(interval[1], name)}]")
    wins = section_of(row) == OK and best is not None and shown(summary.mean, name) == shown(best, name)
    return SiteCell(shown(summary.mean, name), "\n".join(parts), summary.mean, wins)


def _bounds(ball: str, row: Row) -> SiteCell:
    """Certified and attacked share, sorted by the former."""
    low, high = (row.metrics.get(end + ball) for end in (CERTIFIED, ATTACKED))
    if low is None or high is None:
        return SiteCell("–")
    some = f"{low.n} of {len(row.seeds)} seeds" if low.n < len(row.seeds) else ""
    return SiteCell(f"{shown(low.mean, ball)} to {shown(high.mean, ball)}", some, low.mean)


def best_of(name: str, rows: Sequence[Row]) -> float | None:
    """The best mean of a metric among rows that are ranked together, if several rows have the metric."""
    found = [row.metrics.get(name) for row in rows if section_of(row) == OK]
    means = [summary.mean for summary in found if summary is not None]
    if len(means) < 2 or name in _NO_BEST:
        return None
    return min(means) if sign_of(name) < 0 else max(means)
