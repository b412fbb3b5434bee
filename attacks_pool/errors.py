"""Errors that the user can fix, each with a message of one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user gave something that cannot be used; the message says in one line what is allowed."""


def unknown(kind: str, given: str, allowed: Iterable[str], *, see: str = "") -> InputError:
    """Build the error for a name not among ``allowed``: it suggests the nearest name and ends with ``see``.

    >>> str(unknown("attack", "pdg", ["pgd", "fgsm"]))
    "unknown attack 'pdg': did you mean 'pgd'? (allowed: fgsm, pgd)"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {given!r}{hint} ({see or 'allowed: ' + (', '.join(names) or 'none')})")
