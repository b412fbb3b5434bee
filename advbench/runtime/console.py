"""Standard output, for tables."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from leaderboards.printable import printable

PLAIN_WIDTH = 200
COMPACT = 150
"""Columns below which a leaderboard shows fewer numbers."""


class SafeConsole(Console):
    """A console that sends no control character of a text to the terminal, only its own.

    Names of classes and folders may hold brackets and colons: nothing is read as markup. A word that is
    longer than its column goes on in the next line; it is never cut off.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **how})

    def render_str(self, text: str, **how: Any) -> Text:
        """A text, made safe before it is measured, so that tables stay aligned."""
        return super().render_str(printable(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever is drawn, made safe."""
        if isinstance(renderable, Table):
            for column in renderable.columns:
                column.overflow = "fold"
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else printable(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)


def output() -> Console:
    """Standard output; wide where it is no terminal, so that a table in a file is never cut."""
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=PLAIN_WIDTH)


def in_blocks(table: Table, width: int) -> Iterator[Table]:
    """A table as one or more that fit into ``width``, each with the first column and some of the others."""
    widths = [
        max(map(len, "\n".join(map(str, [column.header, *column.cells])).split("\n"))) + 3
        for column in table.columns
    ]
    blocks: list[list[int]] = [[]]
    for place in range(1, len(widths)):
        taken = 1 + widths[0] + sum(widths[other] for other in blocks[-1])
        if blocks[-1] and taken + widths[place] > width:
            blocks.append([])
        blocks[-1].append(place)
    if len(blocks) == 1:
        yield table
        return
    for block in blocks:
        columns = [table.columns[place] for place in (0, *block)]
        part = Table(title=table.title if block is blocks[0] else None, title_justify="left")
        for column in columns:
            part.add_column(column.header, justify=column.justify)
        for row in zip(*(column.cells for column in columns), strict=True):
            part.add_row(*row)
        yield part


errors = functools.partial(SafeConsole, stderr=True)
"""Makes a console on stderr, for what is shown while something goes on."""
