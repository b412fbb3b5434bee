"""Forgetting curves: robust accuracy on each attack after each stage."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from leaderboards.errors import RecordError
from leaderboards.pictures.canvas import Picture, note, percent_axis, picture
from leaderboards.pictures.placing import spread_apart
from leaderboards.pictures.series import Floats, Series, Spread, common, labels, series_of
from leaderboards.pictures.style import DASHES, LIGHT, SMALL, WIDTH, Theme, drawing
from leaderboards.records.record import Record
from leaderboards.statistics.naming import short_names

ROWS = 4
"""The number of sequences that fit one picture."""
CLEAN = -1
"""The column of clean accuracy."""


@dataclass(frozen=True, eq=False)
class StageCurve:
    """One attack over the stages: (T+1,) values at ``stages``."""

    name: str
    stages: Floats
    values: Spread

    @property
    def words(self) -> str:
        """The curve in words: its name and numbers."""
        said = [self.values.said(at) for at in range(len(self.stages))]
        return f"{self.name} {', '.join(said)}"


def forgetting_curves(
    records: Iterable[Record], *, theme: Theme = LIGHT, title: str | None = None
) -> Picture:
    """Robust accuracy over the stages; several seeds are shown as mean and a band of one standard deviation.

    A single defense gets two panels, one for the attacks of its sequence and one for the others, with a line
    per attack. Several defenses get a row of panels per sequence, with a panel per attack and a line per
    defense. A run with one stage (joint, meta) is a horizontal line at its accuracy.

    Raises:
        RecordError: there are no records, too many, too many sequences, or no run with two or more stages.
    """
    found = series_of(records)
    if not any(len(series.stages) > 2 for series in found):
        raise RecordError(
            "forgetting curves need a run with two or more stages: name one with a sequence like fgsm,pgd,cw"
        )
    with drawing(theme):
        return _one(found[0], theme, title) if len(found) == 1 else _several(found, theme, title)


def curve(series: Series, column: int, name: str) -> StageCurve:
    """The curve of the attack in ``column``, or of clean accuracy."""
    values = series.clean if column == CLEAN else series.matrix[:, column]
    return StageCurve(name, np.arange(len(values.mean), dtype=np.float64), values)


def _one(series: Series, theme: Theme, title: str | None) -> Picture:
    entries = series.first.attacks
    names = short_names([entry.text for entry in entries])
    chosen = [
        (heading, [index for index, entry in enumerate(entries) if (entry.role == "seen") is seen])
        for heading, seen in (("trained against", True), ("never trained against", False))
    ]
    panels = [(heading, columns) for heading, columns in chosen if columns]
    heading = f"{series.label}: what is learnt and what is forgotten"
    width = WIDTH if len(panels) > 1 else 0.62 * WIDTH
    figure = picture(theme, heading, width, 3.3, title=title, about=series.about)
    drawn: list[StageCurve] = []
    for number, (axes, (said, columns)) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True)
    ):
        curves = [curve(series, CLEAN, "clean"), *(curve(series, index, names[index]) for index in columns)]
        for place, one in enumerate(curves):
            style = (
                {"color": theme.muted, "linestyle": ":", "marker": ""} if not place else theme.line(place - 1)
            )
            _draw(axes, one, style)
        _name_ends(axes, curves)
        _mark_own_stages(axes, series, columns, theme)
        axes.set_title(said)
        _stage_axis(axes, series)
        percent_axis(axes, "" if number else "accuracy, %")
        drawn += curves[1:] if number else curves
    note(figure, "ringed: the stage that trains against the attack", _band([series]))
    figure.description = f"{series.label}, {series.about}, accuracy in percent after each stage " + "; ".join(
        one.words for one in drawn
    )
    return figure


def _several(found: list[Series], theme: Theme, title: str | None) -> Picture:
    lines = list(_by_sequence(found))
    if len(lines) > ROWS:
        raise RecordError(f"{len(lines)} sequences are too many for one picture: name runs of up to {ROWS}")
    names = list(dict.fromkeys(label for mine in lines for label in mine))
    level = {label for mine in lines for label, series in mine.items() if _is_level(series)}
    legend = [Line2D([], [], label=name, **_style(theme, names, name, name in level)) for name in names]
    widest = max(len(_first(mine).row.sequence) for mine in lines)
    figure = picture(
        theme,
        "Robust accuracy after each stage: what is learnt and what is forgotten",
        max(WIDTH, 2.3 * widest),
        2.3 * len(lines) + 1.0,
        title=title,
        about=common(found),
        legend=legend,
    )
    words: list[str] = []
    grid = figure.subplots(len(lines), widest, sharey=True, squeeze=False)
    for row, mine in zip(grid, lines, strict=True):
        texts = _first(mine).row.sequence
        for axes, text, said in zip(row, texts, short_names(texts), strict=False):
            words.append(_compare(axes, mine, text, said, names, theme))
            percent_axis(axes, "" if axes is not row[0] else "robust accuracy, %")
        if len({_first(other).row.dataset for other in lines}) > 1:
            row[0].set_ylabel(f"{_first(mine).row.dataset}\nrobust accuracy, %")
        for axes in row[len(texts) :]:
            axes.set_visible(False)
    note(figure, "level lines: all attacks at once, in one stage" * bool(level), _band(found))
    figure.description = " ".join(words)
    return figure


def _by_sequence(found: Sequence[Series]) -> Iterator[dict[str, Series]]:
    """Series grouped by data set and sequence, under distinguishing names; one-stage series come last."""
    groups: dict[tuple[object, ...], list[Series]] = {}
    for series in found:
        if series.trained:
            groups.setdefault((series.row.fingerprint, series.row.sequence), []).append(series)
    # A defense has one name and one colour in all sequences.
    apart = [replace(one.row, sequence=(), training=(), protocol="", dataset="") for one in found]
    names = {id(one.row): name for one, name in zip(found, labels(apart), strict=True)}
    for group in groups.values():
        ordered = sorted(group, key=_is_level)
        mine = [names[id(series.row)] for series in ordered]
        if len(set(mine)) < len(mine):
            mine = labels([series.row for series in ordered])
        yield dict(zip(mine, ordered, strict=True))


def _first(mine: dict[str, Series]) -> Series:
    return next(iter(mine.values()))


def _is_level(series: Series) -> bool:
    return len(series.stages) == 2


def _style(theme: Theme, names: Sequence[str], name: str, level: bool) -> dict[str, Any]:
    style = theme.line(names.index(name))
    return {**style, "marker": "", "linestyle": DASHES[1], "linewidth": 1.2} if level else style


def _compare(
    axes: Axes, mine: dict[str, Series], text: str, said: str, names: Sequence[str], theme: Theme
) -> str:
    """Draw one attack of a sequence with a line per defense; return the panel in words."""
    words = []
    for label, series in mine.items():
        column = [entry.text for entry in series.first.attacks].index(text)
        one = curve(series, column, label)
        if _is_level(series):
            ends = np.array([0.0, len(series.row.sequence)])
            one = StageCurve(label, ends, one.values[[-1, -1]])
            words.append(f"{label} {one.values.said(-1)} after its only stage")
        else:
            words.append(one.words)
        _draw(axes, one, _style(theme, names, label, _is_level(series)))
    axes.set_title(said)
    _stage_axis(axes, _first(mine))
    about = f"{said} after each stage, {_first(mine).row.dataset}"
    return f"Robust accuracy in percent on {about}: {'; '.join(words)}."


def _draw(axes: Axes, one: StageCurve, style: dict[str, Any]) -> None:
    axes.plot(one.stages, one.values.mean, label=one.name, clip_on=False, zorder=3, **style)
    if one.values.std is not None:
        low, high = one.values.mean - one.values.std, one.values.mean + one.values.std
        axes.fill_between(one.stages, low.clip(0), high.clip(max=100), color=style["color"], alpha=0.2, lw=0)


def _name_ends(axes: Axes, curves: Sequence[StageCurve]) -> None:
    """Write each line's name at its end; names that would overlap are moved and connected to their line."""
    known = [one for one in curves if not np.isnan(one.values.mean[-1])]
    ends = [float(one.values.mean[-1]) for one in known]
    for one, end, place in zip(known, ends, spread_apart(ends, 6.8, 0, 100), strict=True):
        line = next(line for line in axes.lines if line.get_label() == one.name)
        x = one.stages[-1]
        axes.annotate(
            one.name,
            (x, end),
            xytext=(x + 0.16 * max(1.0, x / 3), place),
            textcoords="data",
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "lw": 0.8, "shrinkA": 1, "shrinkB": 3},
        )


def _mark_own_stages(axes: Axes, series: Series, columns: Sequence[int], theme: Theme) -> None:
    """Draw a ring around each attack's point at the stage that trained against it."""
    matrix = series.matrix.mean
    ring: dict[str, Any] = {"ls": "", "marker": "o", "ms": 10, "mfc": "none", "mec": theme.ink, "mew": 1}
    for stage, column in series.own:
        if column in columns:
            axes.plot([stage], [matrix[stage, column]], clip_on=False, **ring)


def _stage_axis(axes: Axes, series: Series) -> None:
    names = series.stages if not _is_level(series) else ["plain", *short_names(series.row.sequence)]
    slanted = max(map(len, names)) > 34 / len(names)
    axes.set_xticks(
        range(len(names)), names, rotation=30 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_xlabel("after training against")
    axes.set_xlim(-0.15, len(names) - 0.85)


def _band(found: Sequence[Series]) -> str:
    counts = {len(series.records) for series in found} - {1}
    if not counts:
        return ""
    seeds = str(counts.pop()) if len(counts) == 1 else "several"
    return f"line and band: mean and standard deviation of {seeds} seeds"
