"""Directory names for run pages."""

import re
from collections.abc import Iterable
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST: Final = 100
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows reserves, with any suffix."""


def slugs(names: Iterable[str]) -> list[str]:
    """A directory name for each name: plain ASCII, never hidden, and unique even without regard to case."""
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
