"""Plain lines on the terminal, safely; commands write through here or `advbench.runtime.console` alone."""

from __future__ import annotations

import sys
import traceback
import warnings
from types import TracebackType

import typer


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write lines to standard output, or to stderr; what a terminal would obey is spelled out."""
    typer.echo(_safe(text), err=err, nl=nl)


def warn(line: str) -> None:
    """Write one line to stderr."""
    typer.echo(_safe(line).replace("\n", "\\n"), err=True)


def guard() -> None:
    """Have Python's own warnings and tracebacks, which repeat names, written safely too."""
    format_warning = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return _safe(format_warning(message, category, filename, lineno, line))

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        echo("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)

    warnings.formatwarning = formatted
    sys.excepthook = hook


def _safe(text: str) -> str:
    if text.replace("\n", "").isprintable():
        # Most of what is written; a command that shows no more need not load the leaderboards.
        return text
    from leaderboards.printable import printable

    return printable(text)
