"""Reading the finished runs of a directory, and finding records that were changed after the run."""

from pathlib import Path

from leaderboards.audits.contradictions import contradiction_of
from leaderboards.errors import RecordError
from leaderboards.records.checking import implausible
from leaderboards.records.checksums import CHANGED, digest_of, listed_files
from leaderboards.records.layout import OUTCOMES, RECORD
from leaderboards.records.record import Record
from leaderboards.records.store import read_outcomes, read_record, run_paths
from leaderboards.records.trust import trust_of


def read_finished(run_dir: Path) -> tuple[Record, str | None]:
    """A run's record, and one line if the record does not match ``SHA256SUMS``.

    A run without checksums, made before they existed, gets no such line. Changing both files passes this
    check, but not ``advbench verify``.

    Raises:
        RecordError: there is no record, it cannot be read (see `parse_record`), or it holds numbers that no
            run can have (see `implausible`).
    """
    path = Path(run_dir) / RECORD
    record = read_record(path)
    for line in implausible(record):
        raise RecordError(f"{path}: {line}")
    try:
        expected = listed_files(path.parent).get(RECORD)
    except RecordError as error:
        return record, None if isinstance(error.__cause__, FileNotFoundError) else str(error)
    if expected != digest_of(path):
        return record, f"{path}: {CHANGED}"
    return record, None


def find_records(runs_dir: Path, *, measured: bool = False) -> tuple[list[Record], list[str]]:
    """All readable records ``runs_dir/*/record.json`` in path order, and one line for each damaged one.

    A record that can be read but was changed since is returned and also gets a line. With ``measured``, runs
    without outcomes, runs that contradict their outcomes, and runs that a verification refuted are left out,
    each with a line: nothing should rely on their numbers.

    Raises:
        RecordError: there is no such directory.
    """
    records: list[Record] = []
    problems: list[str] = []
    for directory in run_paths(runs_dir):
        try:
            record, changed = read_finished(Path(directory))
        except RecordError as error:
            # There is no record yet: this is a run in progress or a stray file, not damage.
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                problems.append(str(error))
        else:
            fault = _unusable(Path(directory), record) if measured else ""
            if fault:
                problems.append(f"{directory}: not counted: {fault}")
                continue
            records.append(record)
            problems += [changed] if changed else []
    return records, problems


def _unusable(directory: Path, record: Record) -> str:
    try:
        read_outcomes(directory / OUTCOMES)
    except RecordError as error:
        return str(error)
    trust = trust_of(directory)
    if trust == "refuted":
        return "it was refuted by advbench verify"
    line = contradiction_of(directory, record) if trust == "self-reported" else ""
    return f"it contradicts its own outcomes: {line}" if line else ""
