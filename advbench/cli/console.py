"""Standard output, for tables."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from leaderboards.printable import printable

PLAIN_WIDTH = 200
COMPACT = 150
"""Columns below which a leaderboard shows fewer numbers."""


class SafeConsole(Console):
    """A console that sends no control character of a text to the terminal, only its own.

    Names of classes and folders may hold brackets and colons: nothing is read as markup.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **how})

    def render_str(self, text: str, **how: Any) -> Text:
        """A text, made safe before it is measured, so that tables stay aligned."""
        return super().render_str(printable(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever is drawn, made safe."""
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else printable(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)


def output() -> Console:
    """Standard output; wide where it is no terminal, so that a table in a file is never cut."""
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=PLAIN_WIDTH)


errors = functools.partial(SafeConsole, stderr=True)
"""Makes a console on stderr, for what is shown while something goes on."""
