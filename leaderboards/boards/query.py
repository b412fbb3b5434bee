"""Filters for the rows of a leaderboard: by data set, defense and the like, or by any key."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from leaderboards.boards.row import Row
from leaderboards.boards.values import cell, full_name, known_keys, split_part
from leaderboards.errors import RecordError, listed, nearest, unknown
from leaderboards.records.entries import Verdict
from leaderboards.records.trust import LEVELS, How
from leaderboards.statistics.naming import number, same_attacks
from leaderboards.statistics.under import PREFIX, attack_of

Texts = str | Sequence[str] | None
"""One wanted value, several values of which any matches, or None for all."""

_FIXED: Final = {"verdict": get_args(Verdict), "trust": ("verified", *LEVELS)}


@dataclass(frozen=True)
class Query:
    """Conditions that a row must all meet; if a key has several values, any of them matches.

    ``sequence`` has the syntax of ``--sequence``: ``fgsm,pgd:eps=0.1`` finds the sequences of these attacks
    in this order, whatever their other knobs.
    """

    conditions: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, where: Iterable[str], **given: Texts) -> "Query":
        """Make a query from command-line options: ``where`` holds ``KEY=VALUE`` texts, ``given`` the others.

        Raises:
            RecordError: one of ``where`` cannot be read.
        """
        found: dict[str, list[str]] = {}
        for key, values in given.items():
            if values is not None:
                found.setdefault(key, []).extend([values] if isinstance(values, str) else values)
        for text in [where] if isinstance(where, str) else where:
            # The attack in robust.pgd:eps=0.1_mean=0.5 has an equals sign of its own.
            cut = text.rpartition if text.strip().startswith(PREFIX) else text.partition
            key, equals, value = cut("=")
            if not (equals and key.strip()):
                raise RecordError(f"where {text!r} cannot be read: write KEY=VALUE")
            found.setdefault(full_name(key.strip()), []).append(value.strip())
        return cls(tuple((key, tuple(values)) for key, values in found.items() if values))

    def under(self) -> list[str]:
        """The accuracies under single attacks that the query uses: metrics ``robust.ATTACK``."""
        return [split_part(key)[0] for key, _ in self.conditions if attack_of(key)]

    def check(self, rows: Sequence[Row]) -> None:
        """Check that some row has each key and value; without any rows, every query is valid.

        Raises:
            RecordError: no row has one of the keys or values.
        """
        names = known_keys(rows)
        for key, values in self.conditions:
            if not rows and key not in _FIXED:
                continue
            if key not in names:
                raise RecordError(f"where: unknown key {unknown(key, names)}")
            for value in values:
                if key != "rank":
                    _check_value(key, value, rows)

    def shows(self, row: Row) -> bool:
        """Whether a row meets all conditions except those on its rank."""
        return all(_meets(row, key, values) for key, values in self.conditions if key != "rank")

    def shows_ranked(self, row: Row) -> bool:
        """Whether a row's rank meets the conditions on it."""
        return all(_meets(row, key, values) for key, values in self.conditions if key == "rank")


def _check_value(key: str, value: str, rows: Sequence[Row]) -> None:
    if key in _FIXED:
        if value not in _FIXED[key]:
            raise RecordError(f"no such {key} {unknown(value, _FIXED[key])}")
        return
    if any(_equals(key, cell(row, key), value) for row in rows):
        return
    known = sorted({_text(key, cell(row, key)) for row in rows})
    said = f"records on data set {value!r}" if key == "dataset" else f"rows with {key} {value!r}"
    there = "records on" if key == "dataset" else "rows with"
    raise RecordError(f"no {said}:{nearest(value, known)} there are {there} {listed(known)}")


def _meets(row: Row, key: str, values: Sequence[str]) -> bool:
    return any(_equals(key, cell(row, key), value) for value in values)


def _text(key: str, value: Any) -> str:
    if key in ("sequence", "training", "flags", "runs"):
        return ",".join(value)
    if key == "seeds":
        return str(len(value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return str(value)


def _equals(key: str, value: Any, wanted: str) -> bool:
    if key in ("sequence", "training"):
        return same_attacks(value, wanted)
    if key == "seeds":
        return wanted == str(len(value))
    if key == "trust" and wanted == "verified":
        return value in get_args(How)
    if key in ("flags", "runs"):
        return wanted in value or (not value and wanted in ("", "none"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        asked = number(wanted)
        return asked is not None and asked == float(value)
    return _text(key, value).lower() == wanted.lower()
