"""Plain lines on the terminal; every command writes through here or `advbench.cli.console`, and so safely."""

from __future__ import annotations

import typer


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write lines to standard output, or to stderr; what a terminal would obey is spelled out."""
    from leaderboards.printable import printable

    typer.echo(printable(text), err=err, nl=nl)


def warn(line: str) -> None:
    """Write one line to stderr."""
    from leaderboards.printable import in_line

    typer.echo(in_line(line), err=True)
