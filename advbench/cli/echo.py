"""Safe plain output; commands write only through here or `advbench.runtime.console`."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType

import typer

DEFENSES = Path(__file__).parents[2] / "defenses"


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write lines to stdout or stderr, with control characters escaped."""
    typer.echo(_safe(text), err=err, nl=nl)


def warn(line: str) -> None:
    """Write one line to stderr."""
    typer.echo(_safe(line).replace("\n", "\\n"), err=True)


def guard() -> None:
    """Escape control characters in Python's own warnings and tracebacks too, since they repeat names."""
    format_warning = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(DEFENSES):
            # What a defense says of a user's choice needs no place in the code.
            return _safe(f"warning: {' '.join(str(message).split())}") + "\n"
        return _safe(format_warning(message, category, filename, lineno, line))

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        echo("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)

    warnings.formatwarning = formatted
    sys.excepthook = hook


def _safe(text: str) -> str:
    if text.replace("\n", "").isprintable():
        # The usual case, which avoids importing leaderboards.
        return text
    from leaderboards.printable import printable

    return printable(text)
