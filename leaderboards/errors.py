"""Errors of the record store."""

import difflib
from collections.abc import Iterable


def unknown(given: str, names: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """What an error says of a name that is not there: the name, the nearest one, what there is."""
    names = list(names)
    return f"{given!r}:{nearest(given, names)} there are {listed(names if shown is None else shown)}"


def nearest(given: str, names: Iterable[str]) -> str:
    """`` did you mean 'x'?``, or nothing where no name is near."""
    near = difflib.get_close_matches(given.lower(), list(names), n=1, cutoff=0.5)
    return f" did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """The first dozen of the names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{', '.join(names[:12]) or 'none'}{more}"


class RecordError(ValueError):
    """A run, its record or a runs directory cannot be used.

    The message is one line that says what was given, what was expected and what to do.
    """
