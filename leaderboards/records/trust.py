"""How far the numbers of a run were verified in its present directory."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args

from pydantic import Field

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.checksums import digest_of
from leaderboards.records.entries import Frozen, JsonDict
from leaderboards.records.layout import OUTCOMES, RECORD, REFUTED, STAGES, VERIFIED, WEIGHTS
from leaderboards.records.limits import read_bounded
from leaderboards.records.store import write_json

How = Literal["retrained", "re-evaluated"]
Trust = Literal["retrained", "re-evaluated", "self-reported", "refuted"]
LEVELS: Final[tuple[Trust, ...]] = get_args(Trust)
"""The levels of trust, from the most to the least.

``retrained``: the run was repeated from its record and gave the same numbers. ``re-evaluated``: its saved
weights were attacked again; their training was not checked. ``self-reported``: nothing was checked.
``refuted``: a verification found other numbers.
"""
VERIFIED_SCHEMA: Final = 1


class Verified(Frozen):
    """``verified.json``: a verification that confirmed a run and checked enough of it.

    ``schema_number`` is ``schema`` in JSON and as a constructor argument. ``files`` maps record, outcomes and
    weights to their SHA-256 at the time of verification. ``how`` says whether the saved stages were
    re-evaluated or the run was retrained; ``sample`` says what was compared, ``machine`` where.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    run: str
    how: How
    when: str
    files: dict[str, str]
    sample: JsonDict
    machine: JsonDict
    version: str


class Refuted(Frozen):
    """``refuted.json``: a verification that refuted a run, and the contradictions that it found.

    ``schema_number`` is ``schema`` in JSON and as a constructor argument; ``files`` is that of `Verified`.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    run: str
    when: str
    files: dict[str, str]
    faults: list[str]
    version: str


Mark = TypeVar("Mark", Verified, Refuted)


def trust_of(run_dir: Path) -> Trust:
    """The trust level of a run by its verification marks; ``self-reported`` without any: see `LEVELS`.

    A mark counts only while record, outcomes and weights are exactly the files that it lists: none changed,
    removed or added. Anyone who can write the directory can write a mark; archives do not contain any.
    """
    run_dir = Path(run_dir)
    # Look for marks first: most runs have none, and their other files then need not be read.
    marks: list[tuple[Trust, Mapping[str, str]]] = []
    with contextlib.suppress(RecordError):
        if (run_dir / REFUTED).is_file():
            marks.append(("refuted", read_refuted(run_dir).files))
    with contextlib.suppress(RecordError):
        if (run_dir / VERIFIED).is_file():
            mark = read_verified(run_dir)
            marks.append((mark.how, mark.files))
    if not marks:
        return "self-reported"
    try:
        here = digests_of(run_dir)
    except RecordError:
        return "self-reported"
    return next((trust for trust, files in marks if files == here), "self-reported")


def refutation_of(run_dir: Path) -> str:
    """The first contradiction of a run whose trust is ``refuted``; empty if its mark cannot be read."""
    try:
        faults = read_refuted(run_dir).faults
    except RecordError:
        return ""
    return faults[0] if faults else ""


def digests_of(run_dir: Path) -> dict[str, str]:
    """The SHA-256 of the record, the outcomes and all weights of a run, by name.

    Raises:
        RecordError: a file cannot be read, or there is no record.
    """
    run_dir = Path(run_dir)
    weights = sorted(f"{STAGES}/{path.name}" for path in (run_dir / STAGES).glob("*.safetensors"))
    names = [RECORD, *(name for name in (OUTCOMES, WEIGHTS, *weights) if (run_dir / name).exists())]
    return {name: digest_of(run_dir / name) for name in names}


def write_verified(run_dir: Path, mark: Verified) -> Path:
    """Write ``verified.json`` into a run directory, atomically; returns its path.

    Raises:
        RecordError: the file cannot be written.
    """
    return write_json(Path(run_dir) / VERIFIED, mark.dump())


def write_refuted(run_dir: Path, mark: Refuted) -> Path:
    """Write ``refuted.json`` into a run directory, atomically; returns its path.

    Raises:
        RecordError: the file cannot be written.
    """
    return write_json(Path(run_dir) / REFUTED, mark.dump())


def read_verified(run_dir: Path) -> Verified:
    """Read ``verified.json`` of a run directory.

    Raises:
        RecordError: there is none, it is damaged, or its schema is unknown.
    """
    return _read(Path(run_dir) / VERIFIED, Verified)


def read_refuted(run_dir: Path) -> Refuted:
    """Read ``refuted.json`` of a run directory.

    Raises:
        RecordError: there is none, it is damaged, or its schema is unknown.
    """
    return _read(Path(run_dir) / REFUTED, Refuted)


def remove_verified(run_dir: Path) -> bool:
    """Remove ``verified.json``; return whether it existed.

    Raises:
        RecordError: the file cannot be removed.
    """
    return _remove(Path(run_dir) / VERIFIED)


def remove_refuted(run_dir: Path) -> bool:
    """Remove ``refuted.json``; return whether it existed.

    Raises:
        RecordError: the file cannot be removed.
    """
    return _remove(Path(run_dir) / REFUTED)


def _read(path: Path, kind: type[Mark]) -> Mark:
    with os_errors(f"cannot read {path}"):
        try:
            return kind.model_validate(json.loads(read_bounded(path)))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}: not a verification mark that this version can read") from error


def _remove(path: Path) -> bool:
    with os_errors(f"cannot remove {path}"), contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False
