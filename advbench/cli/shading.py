"""Show a table of percentages as a heat map, on terminals with enough colours."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboards.colours import hexadecimal, ink, shade

BARS = "▁▂▃▄▅▆▇█"


def has_shades(console: Console) -> bool:
    """Whether ``console`` is a terminal with many colours and ``NO_COLOR`` is not set."""
    many = console.color_system in ("256", "truecolor")
    return console.is_terminal and not console.no_color and many


def shaded(table: Table) -> Table:
    """A copy of the table with coloured percentages, and a row of bars that show each column's course.

    The first column holds names, the others percentages. The bars, from 0 to 100 %, need at least three rows.
    """
    names, *values = table.columns
    twin = Table(title=table.title, title_justify=table.title_justify, padding=0)
    twin.add_column(_padded(str(names.header)))
    widths = [max(map(len, [*str(column.header).split("\n"), *map(str, column.cells)])) for column in values]
    for column, width in zip(values, widths, strict=True):
        # Pad the cells here, because rich does not colour the padding that it adds.
        twin.add_column(_padded(str(column.header), width), no_wrap=True)
    cells = [[str(cell) for cell in column.cells] for column in values]
    for name, *row in zip(names.cells, *cells, strict=True):
        shades = [_cell(text, width) for text, width in zip(row, widths, strict=True)]
        twin.add_row(_padded(str(name)), *shades)
    if table.row_count > 2:
        twin.add_section()
        courses = [_padded(bars(column), width) for column, width in zip(cells, widths, strict=True)]
        twin.add_row(_padded("course"), *courses)
    return twin


def bars(column: list[str]) -> str:
    """Percentages as bars of eight heights; a missing one is a space.

    >>> bars(["0.0", "50.0", "nan", "100.0"])
    '▁▅ █'
    """
    shares = [float(text) / 100 for text in column]
    return "".join(
        " " if math.isnan(share) else BARS[min(int(share * len(BARS)), len(BARS) - 1)] for share in shares
    )


def _cell(text: str, width: int) -> Text:
    share = float(text) / 100
    if math.isnan(share):
        return Text(_padded(text, width))
    ground = shade(share)
    return Text(_padded(text, width), style=f"{hexadecimal(ink(ground))} on {hexadecimal(ground)}")


def _padded(text: str, width: int = 0) -> str:
    """Align lines at the right of ``width``, between two spaces."""
    return "\n".join(f" {line:>{width}} " for line in text.split("\n"))
