"""Standard output, for tables."""

from __future__ import annotations

import functools

from rich.console import Console

PLAIN_WIDTH = 200
COMPACT = 150
"""Columns below which a leaderboard shows fewer numbers."""


def output() -> Console:
    """Standard output; wide where it is no terminal, so that a table in a file is never cut.

    Names of classes and folders may hold brackets and colons: nothing is read as markup.
    """
    plain = functools.partial(Console, highlight=False, markup=False, emoji=False)
    console = plain()
    return console if console.is_terminal else plain(width=PLAIN_WIDTH)
