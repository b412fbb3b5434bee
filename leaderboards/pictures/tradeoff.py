"""Clean against robust accuracy, with the Pareto front of the rows that no other row beats in both."""

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

from matplotlib.axes import Axes

from leaderboards.boards.labels import short_hash
from leaderboards.boards.row import WORST_CASE, Row
from leaderboards.errors import RecordError, nearest
from leaderboards.pictures.canvas import Picture, note, picture
from leaderboards.pictures.placing import Point, name_marks
from leaderboards.pictures.series import labels, numbers
from leaderboards.pictures.style import LIGHT, WIDTH, Theme, drawing
from leaderboards.statistics.naming import attack_name
from leaderboards.statistics.summary import Summary

MEASURES: Final = {
    "average": ("average_robust_accuracy", "average robust accuracy"),
    "worst-case": ("worst_case_accuracy", "worst-case accuracy"),
    "unseen": ("unseen_accuracy", "unseen accuracy"),
}
MOST_ROWS: Final = 40
MOST_PANELS: Final = 6


def pareto_front(points: Sequence[Point]) -> list[int]:
    """The indices of the Pareto-optimal points, sorted by x.

    >>> pareto_front([(1, 3), (2, 2), (1, 2), (3, 0), (2, 2)])
    [0, 1, 4, 3]
    """
    front = [
        index
        for index, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(front, key=lambda index: (points[index][0], -points[index][1]))


def trade_off(
    rows: Iterable[Row], *, measure: str = "average", theme: Theme = LIGHT, title: str | None = None
) -> Picture:
    """Clean accuracy against a robust one (a key of ``MEASURES``), mean and standard deviation over seeds.

    Each comparison (data set, sequence, model, protocol) has a panel. The front is made of ``ok`` rows;
    target-aware and suspect rows are hollow and never on it; invalid rows and rows without a value are left
    out.

    Raises:
        RecordError: no row has both values, there are too many rows, or the measure is unknown.
    """
    if measure not in MEASURES:
        near = nearest(measure, MEASURES)
        hint = f":{near}" if near else ""
        raise RecordError(f"unknown measure {measure!r}{hint} (allowed: {', '.join(MEASURES)})")
    metric, said = MEASURES[measure]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.verdict != "invalid" and row.metrics.get(metric) and row.metrics.get("clean_accuracy"):
            groups.setdefault(row.comparison, []).append(row)
    _refuse(groups, said)
    with drawing(theme):
        across = min(len(groups), 2)
        down = -(-len(groups) // across)
        size = (WIDTH if across > 1 else 0.72 * WIDTH, 3.4 * down + 0.5)
        about = _about(next(iter(groups.values()))[0]) if len(groups) == 1 else ""
        figure = picture(theme, f"Clean accuracy and {said}", *size, title=title, about=about)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        words = []
        for axes, group in zip(grid, groups.values(), strict=False):
            axes.set_xlabel("clean accuracy, %")
            axes.set_ylabel(f"{said}, %")
            axes.set_title("" if about else _told_apart(group[0], groups.values()), fontsize=8)
            words.append(_panel(axes, group, metric, theme))
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        worst = metric == WORST_CASE
        _notes(figure, [row for group in groups.values() for row in group], worst_case=worst)
        figure.description = f"Clean accuracy and {said} in percent. {' '.join(words)}"
    return figure


def _refuse(groups: dict[tuple[str, ...], list[Row]], said: str) -> None:
    if not groups:
        raise RecordError(f"no run has both clean accuracy and {said}")
    if len(groups) > MOST_PANELS:
        raise RecordError(
            f"{len(groups)} comparisons (data set, sequence, model, protocol) are too many for one picture: "
            f"name runs of up to {MOST_PANELS}"
        )
    if (most := max(map(len, groups.values()))) > MOST_ROWS:
        raise RecordError(f"{most} rows are too many for one picture: name runs of up to {MOST_ROWS} rows")


def _about(row: Row) -> str:
    sequence = " → ".join(map(attack_name, row.sequence))
    return " · ".join(filter(None, [row.dataset, sequence, row.model]))


def _told_apart(row: Row, groups: Collection[Sequence[Row]]) -> str:
    """A panel's title; if another panel has the same title, the protocol is added to distinguish them."""
    about = _about(row)
    alike = sum(_about(group[0]) == about for group in groups)
    return about if alike == 1 else f"{about} · protocol {short_hash(row.protocol)}"


def _value(row: Row, metric: str) -> Summary:
    summary = row.metrics[metric]
    assert summary is not None
    return summary


def _std(row: Row, metric: str) -> float:
    return 100 * (_value(row, metric).std or 0.0)


def _panel(axes: Axes, group: Sequence[Row], metric: str, theme: Theme) -> str:
    """Draw one comparison; return it in words."""
    points = [(100 * _value(row, "clean_accuracy").mean, 100 * _value(row, metric).mean) for row in group]
    ranked = [index for index, row in enumerate(group) if row.honest and not row.target_aware]
    front = [ranked[index] for index in pareto_front([points[index] for index in ranked])]
    names = labels(group)
    errors = [(_std(row, "clean_accuracy"), _std(row, metric)) for row in group]
    for index, (row, (x, y), (dx, dy)) in enumerate(zip(group, points, errors, strict=True)):
        style = theme.line(index)
        fill = "none" if not row.honest or row.target_aware else style["color"]
        bars = (dy, dx) if len(row.seeds) > 1 else (None, None)
        axes.errorbar(
            [x],
            [y],
            *bars,
            color=style["color"],
            marker=style["marker"],
            ms=7,
            mew=1.4,
            elinewidth=1,
            ls="",
            mfc=fill,
            label=names[index],
        )
    for place, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        low = min(point[place] - error[place] for point, error in zip(points, errors, strict=True))
        high = max(point[place] + error[place] for point, error in zip(points, errors, strict=True))
        room = max(0.16 * (high - low), 1.0)
        limit(max(low - room, -2), min(high + room, 101))
    axes.locator_params(nbins=6, steps=[1, 2, 2.5, 5, 10])
    stairs = _stairs(axes, [points[index] for index in front], theme)
    marked = [_marked(row, name) for row, name in zip(group, names, strict=True)]
    name_marks(axes, points, errors, stairs, marked, theme.muted)
    return _words(group, points, names, front, metric)


def _stairs(axes: Axes, front: Sequence[Point], theme: Theme) -> list[Point]:
    """Draw the border of the area that the front dominates, from edge to edge; return its corners."""
    if not front:
        return []
    (left, _), (low, _) = axes.get_xlim(), axes.get_ylim()
    corners: list[Point] = [(left, front[0][1]), front[0]]
    for (x, _), (following, y) in pairwise(front):
        corners += [(x, y), (following, y)]
    corners.append((front[-1][0], low))
    style: dict[str, Any] = {"color": theme.muted, "linewidth": 1.2, "linestyle": (0, (4, 2)), "zorder": 1}
    x_values, y_values = zip(*corners, strict=True)
    axes.plot(x_values, y_values, label="Pareto front", scalex=False, scaley=False, **style)
    return corners


def _marked(row: Row, name: str) -> str:
    signs = [row.verdict] * (row.verdict != "ok") + ["not ranked"] * bool(row.refused)
    signs += ["target-aware"] * row.target_aware
    return f"{name}, {', '.join(signs)}" if signs else name


def _notes(figure: Picture, group: Sequence[Row], *, worst_case: bool) -> None:
    note(
        figure,
        "dashed: Pareto front of the rows that the audit found ok",
        _hollow(group),
        "; ".join(dict.fromkeys(row.worst_case_note for row in group)) if worst_case else "",
        "bars: standard deviation over seeds" * any(len(row.seeds) > 1 for row in group),
    )


def _hollow(group: Sequence[Row]) -> str:
    signs = (
        ["suspect or target-aware"] if any(row.verdict != "ok" or row.target_aware for row in group) else []
    )
    signs += ["not ranked"] if any(row.refused for row in group) else []
    return f"hollow: {' or '.join(signs)}" if signs else ""


def _words(
    group: Sequence[Row],
    points: Sequence[Point],
    names: Sequence[str],
    front: Sequence[int],
    metric: str,
) -> str:
    said = []
    for row, (x, y), name in zip(group, points, names, strict=True):
        pair = [(x, _value(row, "clean_accuracy").std), (y, _value(row, metric).std)]
        shown = [numbers(mean, None if std is None else 100 * std) for mean, std in pair]
        said.append(f"{_marked(row, name)}: {shown[0]} clean, {shown[1]} robust")
    ahead = ", ".join(names[index] for index in front) or "none"
    return f"{group[0].dataset}: {'; '.join(said)}. Pareto front: {ahead}."
