"""Standard output, for tables."""

from __future__ import annotations

import functools
import os

from rich.console import Console

PLAIN_WIDTH = 200
COMPACT = 150
"""Columns below which a leaderboard shows fewer numbers."""


def output() -> Console:
    """Standard output; wide where it is no terminal and COLUMNS does not say how wide, for tables in files.

    Names of classes and folders may hold brackets and colons: nothing is read as markup.
    """
    plain = functools.partial(Console, highlight=False, markup=False, emoji=False)
    console = plain()
    told = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return console if told else plain(width=PLAIN_WIDTH)
