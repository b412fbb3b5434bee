"""Errors that a user can mend, each a single line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line that says what would be."""


def unknown(kind: str, given: str, allowed: Iterable[str], *, see: str = "") -> InputError:
    """The error for a name that is not among ``allowed``, with the nearest one and, after it, ``see``.

    >>> str(unknown("attack", "pdg", ["pgd", "fgsm"]))
    "unknown attack 'pdg': did you mean 'pgd'? (allowed: fgsm, pgd)"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {given!r}{hint} ({see or 'allowed: ' + (', '.join(names) or 'none')})")
