"""The stage × attack matrix as a heat map with its numbers."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from leaderboards.colours import hexadecimal, ink, shade
from leaderboards.pictures.canvas import Picture, note, picture
from leaderboards.pictures.series import Floats, Series, Spread, common, headed, series_of
from leaderboards.pictures.style import COLOURS, LIGHT, SMALL, WIDTH, Theme, drawing
from leaderboards.records.record import Record
from leaderboards.statistics.naming import short_names

GAP = 0.22
"""The gap between clean, seen and unseen attacks, in cells."""
HEADINGS = {
    "clean": "",
    "seen": "trained against",
    "unseen": "never trained against",
    "eval": "only evaluated",
}


@dataclass(frozen=True, eq=False)
class Block:
    """Adjacent columns: kind, names, left edge, values (rows, columns), and which cells a stage trained."""

    kind: str
    names: list[str]
    left: float
    values: Spread
    own: set[tuple[int, int]]


def heat_map(records: Iterable[Record], *, theme: Theme = LIGHT, title: str | None = None) -> Picture:
    """R in percent: a row per stage, a column per attack, clean accuracy first; a panel per defense.

    Seeds share a panel: the mean gives a cell its colour, and mean and standard deviation are written in it.
    Cells of the attacks that a stage trains against are framed. A cell that was not measured is hatched.

    Raises:
        RecordError: there are no records, or too many.
    """
    found = series_of(records)
    blocks = [list(_blocks(series)) for series in found]
    columns = max(panel[-1].left + len(panel[-1].names) for panel in blocks)
    rows = [len(series.stages) for series in found]
    after = " after each stage" if any(series.trained for series in found) else ""
    heading = headed(found, f"robust accuracy in %{after}")
    with drawing(theme):
        tall = 0.44 if any(len(series.records) > 1 for series in found) else 0.34
        width = min(max(1.9 + 0.62 * columns, 4.6), 2 * WIDTH)
        height = sum(tall * count + 0.95 for count in rows) + 0.7
        figure = picture(theme, heading, width, height, title=title, about=common(found))
        panels = figure.subplots(len(found), 1, squeeze=False, gridspec_kw={"height_ratios": rows})[:, 0]
        for axes, series, parts in zip(panels, found, blocks, strict=True):
            _panel(axes, series, parts, columns, theme)
            if len(found) > 1:
                axes.set_title(textwrap.fill(_title(series, found), int(11 * width)), pad=8)
        _scale(figure, panels)
        framed = any(block.own for panel in blocks for block in panel)
        seeds = any(len(series.records) > 1 for series in found)
        note(
            figure,
            "framed: what the stage trained against" * framed,
            "mean ± standard deviation over seeds" * seeds,
        )
        figure.description = " ".join(
            _words(series, parts) for series, parts in zip(found, blocks, strict=True)
        )
    return figure


def _blocks(series: Series) -> Iterator[Block]:
    """The blocks of columns: clean accuracy, then the attacks by role."""
    clean, matrix, entries = series.clean, series.matrix, series.first.attacks
    names = short_names([entry.text for entry in entries])
    yield Block("clean", ["clean"], 0.0, clean[:, None], set())
    left = 1.0
    for role in ("seen", "unseen", "eval"):
        chosen = [index for index, entry in enumerate(entries) if entry.role == role]
        if not chosen:
            continue
        left += GAP
        own = {(stage, chosen.index(column)) for stage, column in series.own if column in chosen}
        yield Block(role, [names[index] for index in chosen], left, matrix[:, chosen], own)
        left += len(chosen)


def _panel(axes: Axes, series: Series, blocks: list[Block], columns: float, theme: Theme) -> None:
    rows = len(series.stages)
    ticks: list[float] = []
    for block in blocks:
        edges = block.left + np.arange(len(block.names) + 1)
        values = np.ma.masked_invalid(block.values.mean)
        axes.add_patch(
            Rectangle(
                (block.left, 0),
                len(block.names),
                rows,
                facecolor=theme.faint,
                edgecolor=theme.muted,
                hatch="///",
                lw=0,
            )
        )
        axes.pcolormesh(
            edges,
            np.arange(rows + 1),
            values,
            cmap=COLOURS,
            vmin=0,
            vmax=100,
            edgecolors=theme.paper,
            linewidth=1.5,
        )
        _write(axes, block)
        ticks += [block.left + place + 0.5 for place in range(len(block.names))]
        if HEADINGS[block.kind]:
            right = block.left + len(block.names)
            axes.plot(
                [block.left + 0.06, right - 0.06], [rows + 0.1] * 2, color=theme.muted, lw=0.8, clip_on=False
            )
            axes.text(
                (block.left + right) / 2,
                rows + 0.2,
                HEADINGS[block.kind],
                color=theme.muted,
                fontsize=SMALL,
                ha="center",
                va="top",
                clip_on=False,
            )
    labels = [name.replace(" ", "\n") for block in blocks for name in block.names]
    slanted = max(len(line) for label in labels for line in label.split("\n")) > 10
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_xticks(ticks, labels, rotation=30 if slanted else 0, ha="left" if slanted else "center")
    axes.set_yticks(
        np.arange(rows) + 0.5,
        [f"{stage} {name}" if series.trained else name for stage, name in enumerate(series.stages)],
    )
    axes.tick_params(top=False, bottom=False, left=False, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _write(axes: Axes, block: Block) -> None:
    """Write the numbers, and frame the cells that a stage trained against."""
    std = block.values.std
    for (row, column), value in np.ndenumerate(block.values.mean):
        x, y = block.left + column + 0.5, row + 0.5
        if np.isnan(value):
            axes.text(x, y, "–", ha="center", va="center")
            continue
        colour = hexadecimal(ink(shade(value / 100)))
        framed = (row, column) in block.own
        look: dict[str, Any] = {"ha": "center", "color": colour, "fontweight": "bold" if framed else "normal"}
        if std is None:
            axes.text(x, y, f"{value:.1f}", va="center", **look)
        else:
            axes.text(x, y + 0.03, f"{value:.1f}", va="bottom", **look)
            look |= {"fontweight": "normal"}
            axes.text(x, y + 0.07, f"± {std[row, column]:.1f}", va="top", fontsize=6.5, **look)
        if framed:
            axes.add_patch(Rectangle((x - 0.42, y - 0.4), 0.84, 0.8, fill=False, edgecolor=colour, lw=1))


def _title(series: Series, found: list[Series]) -> str:
    """A panel's title: the label, and details of the series that the picture's heading lacks."""
    said = common(found).split(" · ")
    return " · ".join([series.label, *(part for part in series.about.split(" · ") if part not in said)])


def _scale(figure: Picture, panels: Floats) -> None:
    mesh = panels[0].collections[0]
    bar = figure.colorbar(
        mesh,
        ax=list(panels),
        aspect=8 * figure.get_figheight(),
        fraction=0.04,
        pad=0.015,
        ticks=[0, 25, 50, 75, 100],
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=SMALL)


def _words(series: Series, blocks: list[Block]) -> str:
    lines = []
    for row, stage in enumerate(series.stages):
        cells = [
            f"{name} {block.values.said(row, place)}"
            for block in blocks
            for place, name in enumerate(block.names)
        ]
        lines.append(f"after stage {row} ({stage}): {', '.join(cells)}")
    return f"{series.label}, {series.about}, robust accuracy in percent {'; '.join(lines)}."
