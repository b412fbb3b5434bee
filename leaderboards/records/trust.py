"""Whether a run's numbers were verified where it lies, or are what somebody says."""

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from leaderboards.errors import RecordError
from leaderboards.records.checksums import digest_of
from leaderboards.records.entries import Frozen, JsonDict
from leaderboards.records.layout import OUTCOMES, RECORD, STAGES, VERIFIED, WEIGHTS
from leaderboards.records.limits import read_bounded
from leaderboards.records.store import write_json

Trust = Literal["verified", "self-reported"]
VERIFIED_SCHEMA: Final = 1


class Verified(Frozen):
    """``verified.json``: a verification that confirmed a run and looked at enough of it.

    ``schema_number`` is ``schema`` in JSON and as a constructor argument. ``files`` maps record, outcomes and
    weights, as they were when they were verified, to their SHA-256. ``how`` tells a re-evaluation of the
    saved stages from training once more; ``sample`` says what was compared, ``machine`` where.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    run: str
    how: Literal["re-evaluated", "retrained"]
    when: str
    files: dict[str, str]
    sample: JsonDict
    machine: JsonDict
    version: str

    def dump(self) -> dict[str, Any]:
        """The mark as JSON values, under the keys of ``verified.json``."""
        return self.model_dump(mode="json", by_alias=True)


def trust_of(run_dir: Path) -> Trust:
    """``verified`` where a verification confirmed the very files that lie there, else ``self-reported``.

    The mark counts only while record, outcomes and weights are those that it names: none changed, none gone,
    none added. It is as good as whoever can write the directory; archives of others bring none with them.
    """
    run_dir = Path(run_dir)
    # First, and cheap: most runs have none, and nothing of them is read.
    if not (run_dir / VERIFIED).is_file():
        return "self-reported"
    try:
        mark = read_verified(run_dir)
        return "verified" if mark.files == digests_of(run_dir) else "self-reported"
    except RecordError:
        return "self-reported"


def digests_of(run_dir: Path) -> dict[str, str]:
    """SHA-256 of the record, the outcomes and all weights of a run, by name.

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
    path = Path(run_dir) / VERIFIED
    write_json(path, mark.dump())
    return path


def read_verified(run_dir: Path) -> Verified:
    """Read ``verified.json`` of a run directory.

    Raises:
        RecordError: there is none, it is damaged, or its schema is unknown.
    """
    path = Path(run_dir) / VERIFIED
    try:
        tree = json.loads(read_bounded(path))
        return Verified.model_validate(tree)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: no mark of a verification that this version reads") from error


def remove_verified(run_dir: Path) -> bool:
    """Take the mark away, where there is one; says whether there was.

    Raises:
        RecordError: it cannot be removed.
    """
    path = Path(run_dir) / VERIFIED
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RecordError(f"cannot remove {path}: {error.strerror or type(error).__name__}") from error
    return True
