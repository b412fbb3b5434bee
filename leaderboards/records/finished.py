"""The finished runs of a directory, as they were when they were finished."""

from pathlib import Path

from leaderboards.errors import RecordError
from leaderboards.records.checksums import digest_of, listed_files
from leaderboards.records.layout import OUTCOMES, RECORD
from leaderboards.records.record import Record
from leaderboards.records.store import Bools, read_outcomes, read_record, run_paths


def read_finished(run_dir: Path) -> Record:
    """Read a run's record, and refuse one that is not what ``SHA256SUMS`` says it was.

    A run without checksums, made before there were any, is read as it is. Whoever changes both fools this,
    but not ``advbench verify``.

    Raises:
        RecordError: there is none, it cannot be read (see `parse_record`), or it was changed.
    """
    record = read_record(Path(run_dir) / RECORD)
    _refuse_changed(Path(run_dir), RECORD)
    return record


def read_finished_outcomes(run_dir: Path) -> tuple[Bools, Bools]:
    """(clean, robust) of a run as `read_outcomes` reads them, refused as `read_finished` refuses a record.

    Raises:
        RecordError: there are none, they cannot be read, or they were changed.
    """
    outcomes = read_outcomes(Path(run_dir) / OUTCOMES)
    _refuse_changed(Path(run_dir), OUTCOMES)
    return outcomes


def find_records(runs_dir: Path) -> tuple[list[Record], list[str]]:
    """All readable records ``runs_dir/*/record.json`` in path order, and one line for each damaged one.

    Raises:
        RecordError: there is no such directory.
    """
    records: list[Record] = []
    problems: list[str] = []
    for directory in run_paths(runs_dir):
        try:
            records.append(read_finished(Path(directory)))
        except RecordError as error:
            # No record yet: a run in progress, or a stray file. That is no damage.
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                problems.append(str(error))
    return records, problems


def _refuse_changed(run_dir: Path, name: str) -> None:
    try:
        listed = listed_files(run_dir)
    except RecordError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    else:
        if listed.get(name) != digest_of(run_dir / name):
            raise RecordError(f"{run_dir / name}: changed since the run was finished (its checksum differs)")
