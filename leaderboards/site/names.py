"""Short names: of attacks in column headings, of run pages in paths."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST: Final = 100
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for itself, with any ending."""


def parse_attack(text: str) -> tuple[str, dict[str, str]]:
    """Name and knobs of an attack's canonical text; names of other libraries have a colon of their own.

    >>> parse_attack("ta:PGD:eps=0.1,steps=7")
    ('ta:PGD', {'eps': '0.1', 'steps': '7'})
    """
    head, equals, _ = text.partition("=")
    name = head.rpartition(":")[0] if equals else head
    pairs = (knob.partition("=") for knob in text.removeprefix(name).removeprefix(":").split(",") if knob)
    return name, {knob: value for knob, _, value in pairs}


def attack_labels(texts: Sequence[str]) -> list[str]:
    """Each attack's name, with the knobs that tell it from another of that name."""
    parsed = [parse_attack(text) for text in texts]
    twins = Counter(name for name, _ in parsed)
    shared = {
        name: set.intersection(*(set(knobs.items()) for other, knobs in parsed if other == name))
        for name in twins
    }
    found = []
    for name, knobs in parsed:
        own = [f"{knob}={value}" for knob, value in knobs.items() if (knob, value) not in shared[name]]
        found.append(f"{name} {','.join(own)}" if twins[name] > 1 and own else name)
    return found


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
