"""Short names: of attacks in column headings, of run pages in paths."""

import re
from collections.abc import Iterable
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST: Final = 100
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for itself, with any ending."""


def slugs(names: Iterable[str]) -> list[str]:
    """A directory name for each: plain ASCII, never hidden, and no two alike, not even in another case."""
    taken: set[str] = set()
    found = []
    for name in names:
        stem = _UNSAFE.sub("-", name)[:_LONGEST].strip(".-") or "run"
        if _DEVICES.fullmatch(stem):
            stem = f"run-{stem}"
        slug, number = stem, 1
        while slug.lower() in taken:
            number += 1
            slug = f"{stem}-{number}"
        taken.add(slug.lower())
        found.append(slug)
    return found
