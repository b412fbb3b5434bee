"""RobustBench's ``model_info``: one JSON file per model, in a folder per data set and threat.

Its files have ten different sets of keys, numbers as text, ``null`` beside ``""`` and ``"null"``, and one has
a duplicate key. `ZooEntry` preserves all of that: the order of keys, unknown keys, the text of every number.
Its properties give the interpreted values.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.limits import read_bounded
from leaderboards.records.store import write_bytes

CORRUPTIONS: Final = "corruptions"
THREATS: Final = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""RobustBench's folder name for each of our norms; it has no leaderboard for l1."""
UNSORTED: Final = "no threat folder"
"""The threat of a file outside RobustBench's threat folders."""
ABSENT: Final = (None, "", "null")
"""The values that stand for a missing number in its files."""
PERCENT: Final = (
    "clean_acc",
    "autoattack_acc",
    "external",
    "corruptions_acc",
    "corruptions_acc_3d",
)
_NEEDED: Final = ("name", "dataset", "clean_acc")


@dataclass(frozen=True)
class Number:
    """A number of a JSON file, with its original text."""

    text: str


@dataclass(frozen=True)
class ZooEntry:
    """RobustBench's entry of one model.

    Attributes:
        id: the file's name without its suffix, which is RobustBench's name of the model.
        dataset: the data set by the folder, since files sometimes name another; outside such folders, by the
            file.
        threat: the threat by the folder: ``Linf``, ``L2`` or ``corruptions``; otherwise `UNSORTED`.
        pairs: keys and values in the order of the file; numbers are `Number`.
    """

    id: str
    dataset: str
    threat: str
    pairs: tuple[tuple[str, Any], ...]

    def get(self, key: str) -> Any:
        """The value of a key, the last one if the key is duplicated; None if it is missing."""
        return dict(self.pairs).get(key)

    def number(self, key: str) -> float | None:
        """The number under a key, whether or not it is text; None if the file marks it as missing."""
        return _number(self.get(key))

    @property
    def name(self) -> str:
        """The entry's name, usually the title of the paper."""
        return str(self.get("name"))

    @property
    def clean(self) -> float | None:
        """Clean accuracy as a share."""
        return _share(self.number("clean_acc"))

    @property
    def robust(self) -> float | None:
        """The best known bound on robust accuracy as a share, by which RobustBench ranks.

        This is the lower of the accuracies under AutoAttack and under another evaluation (``external``); for
        corruptions, it is the mean accuracy over them.
        """
        if self.threat == CORRUPTIONS:
            return _share(self.number("corruptions_acc"))
        found = [self.number("autoattack_acc"), self.number("external")]
        return _share(min((value for value in found if value is not None), default=None))

    @property
    def eps(self) -> float | None:
        """The budget; for a corruption model, the budget of its training, if any."""
        return self.number("eps")

    @property
    def flagged(self) -> bool:
        """Whether RobustBench calls the evaluation potentially unreliable."""
        return self.get("unreliable") is True


def read_entry(path: Path) -> ZooEntry:
    """Read one file; its folder gives the threat, and the folder above that the data set.

    Raises:
        RecordError: the file is missing or damaged, or is not a RobustBench row.
    """
    path = Path(path)
    with os_errors(f"cannot read RobustBench row {path}"):
        data = read_bounded(path)
    place = path.resolve().parent
    entry = parse_entry(data, str(path), id=path.stem, dataset=place.parent.name, threat=place.name)
    if place.name in (*THREATS.values(), CORRUPTIONS):
        return entry
    return replace(entry, dataset=str(entry.get("dataset")), threat=UNSORTED)


def parse_entry(data: bytes | str, source: str, *, id: str, dataset: str, threat: str) -> ZooEntry:
    """Parse an entry from JSON text; ``source`` names the file in errors.

    Raises:
        RecordError: the text is not JSON or not a RobustBench row: it lacks name, dataset or clean_acc, or
            has a wrong value where a number is expected.
    """
    where = f"RobustBench row {source}"
    try:
        pairs = json.loads(
            data,
            object_pairs_hook=tuple,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(pairs, tuple):
        raise RecordError(f"{where}: a row is a JSON object")
    entry = ZooEntry(id, dataset, threat, pairs)
    keys = {key for key, _ in pairs}
    if missing := [key for key in _NEEDED if key not in keys]:
        raise RecordError(f"{where}: missing {', '.join(missing)}: this is not a RobustBench row")
    for key in [*PERCENT, "eps"]:
        _check(entry, key, where)
    if entry.clean is None:
        raise RecordError(f"{where}: clean_acc must be a number, not {_said(entry.get('clean_acc'))}")
    return entry


def find_entries(folder: Path, datasets: Collection[str] | None = None) -> list[ZooEntry]:
    """The entries of a ``model_info`` folder, or of a data set's or threat's folder in it, in path order.

    Args:
        folder: the folder.
        datasets: only these data sets.

    Raises:
        RecordError: the folder does not exist, has no JSON files, or has one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordError(f"no RobustBench folder at {folder}: name its model_info, or a folder in it")
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise RecordError(f"no JSON files in {folder}: name RobustBench's model_info, or a folder in it")
    entries = [read_entry(path) for path in paths]
    return [entry for entry in entries if datasets is None or entry.dataset in datasets]


def to_text(entry: ZooEntry) -> str:
    """The entry as JSON, one key per line; nothing is added, left out, reordered or rounded."""
    lines = [f"  {json.dumps(key)}: {_text(value)}" for key, value in entry.pairs]
    return "{\n" + ",\n".join(lines) + "\n}\n" if lines else "{}\n"


def write_entry(path: Path, entry: ZooEntry) -> None:
    """Write an entry, atomically.

    Raises:
        RecordError: the file cannot be written.
    """
    write_bytes(Path(path), to_text(entry).encode())


def _text(value: Any) -> str:
    if isinstance(value, Number):
        return value.text
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{json.dumps(key)}: {_text(one)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value)


def _number(value: Any) -> float | None:
    """Parse a number, its text, or a fraction such as ``8/255``; None for `ABSENT`.

    Raises:
        ValueError: the value is anything else.
    """
    if value in ABSENT:
        return None
    text = value.text if isinstance(value, Number) else value
    if not isinstance(text, str):
        raise ValueError("no number")
    above, slash, below = text.partition("/")
    number = float(above) / float(below) if slash else float(above)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _check(entry: ZooEntry, key: str, where: str) -> None:
    value = entry.get(key)
    try:
        number = _number(value)
    except (ValueError, ZeroDivisionError):
        raise RecordError(f"{where}: {key} must be a number, not {_said(value)}") from None
    if number is not None and not 0 <= number <= (100 if key in PERCENT else math.inf):
        raise RecordError(f"{where}: {key} is out of range: {_said(value)}")


def _said(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
