"""Describes an error in one line."""

from __future__ import annotations

EXPECTED = ("InputError", "RecordError", "RunBusyError", "TrainingDivergedError", "RunFailedError")
"""Errors whose message alone explains the fault."""


def reason(error: BaseException) -> str:
    """One line on why something failed, from its error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if type(error).__name__ in EXPECTED:
        return " ".join(lines)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
