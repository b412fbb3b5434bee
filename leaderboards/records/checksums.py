"""``SHA256SUMS`` of a finished run: the checksums of its files at the time when it finished."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.layout import (
    CERTIFICATES,
    CHECKPOINT,
    CHECKSUMS,
    LOCK,
    LOG,
    RECORD,
    REFUTED,
    TENSORBOARD,
    VERIFIED,
    WANDB,
    files_below,
    temporary_of,
)
from leaderboards.records.limits import check_plain, read_bounded
from leaderboards.records.store import write_bytes

NOT_LISTED: Final = frozenset(
    {CHECKSUMS, LOG, LOCK, CHECKPOINT, TENSORBOARD, WANDB, VERIFIED, REFUTED, CERTIFICATES}
)
"""Files without a checksum: logs, which grow until the end, and files that are no part of a finished run."""
CHANGED: Final = "changed since the run was finished (its checksum differs)"
_LINE: Final = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")


def write_checksums(run_dir: Path, record: bytes) -> Path:
    """Write ``SHA256SUMS`` in the format of the ``sha256sum`` program, atomically; returns its path.

    Args:
        run_dir: a run that is finished except for its record.
        record: the future content of ``record.json``.

    Raises:
        RecordError: a file cannot be read, or the checksums cannot be written.
    """
    run_dir = Path(run_dir)
    found = {name: digest_of(run_dir / name) for name in _files(run_dir)}
    found[RECORD] = hashlib.sha256(record).hexdigest()
    lines = "".join(f"{_line(name, found[name])}\n" for name in sorted(found))
    return write_bytes(run_dir / CHECKSUMS, lines.encode())


def verify_checksums(run_dir: Path) -> list[str]:
    """One line for each file that is missing, changed or not listed; none if nothing has changed.

    Raises:
        RecordError: ``SHA256SUMS`` is missing or cannot be read.
    """
    run_dir = Path(run_dir)
    listed, problems = _read(run_dir / CHECKSUMS)
    if RECORD not in listed:
        problems.append(f"{CHECKSUMS}: {RECORD} is not listed")
    for name, expected in sorted(listed.items()):
        problems += _compare(run_dir / name, name, expected)
    unlisted = sorted(set(_files(run_dir)) - listed.keys() - {RECORD})
    return problems + [f"{_shown(name)}: not listed in {CHECKSUMS}" for name in unlisted]


def listed_files(run_dir: Path) -> dict[str, str]:
    """The files that ``SHA256SUMS`` lists, each with its digest, whether or not they exist.

    Raises:
        RecordError: ``SHA256SUMS`` is missing or cannot be read.
    """
    return _read(Path(run_dir) / CHECKSUMS)[0]


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    """The names with their digests, and one line for each line that cannot be read."""
    with os_errors(f"cannot read {path}", f"no checksums at {path}: the run predates them"):
        try:
            text = read_bounded(path).decode("utf-8")
        except ValueError as error:
            raise RecordError(f"{path}: not a list of checksums") from error
    problems: list[str] = []
    listed: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        entry = _parse(line)
        if entry is None:
            problems.append(f"{CHECKSUMS}: line {number} is not a checksum of a file inside the run")
        else:
            listed[entry[0]] = entry[1]
    return listed, problems


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits; the file is read in pieces.

    Raises:
        RecordError: the file cannot be read.
    """
    with os_errors(f"cannot read {path}"):
        check_plain(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(path: Path, name: str, expected: str) -> list[str]:
    if not path.is_file():
        return [f"{_shown(name)}: missing"]
    try:
        same = digest_of(path) == expected
    except RecordError as error:
        return [f"{_shown(name)}: {error}"]
    return [] if same else [f"{_shown(name)}: {CHANGED}"]


def _files(run_dir: Path) -> Iterator[str]:
    """The names, with forward slashes, of the files that a finished run keeps."""
    for path in files_below(run_dir):
        parts = path.relative_to(run_dir).parts
        if parts[0] not in NOT_LISTED and temporary_of(parts[-1]) is None and path.is_file():
            yield "/".join(parts)


def _line(name: str, digest: str) -> str:
    # Follow sha256sum: a name with a newline or backslash is escaped, and the line begins with a backslash.
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}"


def _parse(line: str) -> tuple[str, str] | None:
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    escaped, digest, name = found.groups()
    if escaped:
        plain = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
        name = re.sub(r"\\[\\nr]", lambda match: plain[match[0]], name)
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).anchor or ".." in path.parts:
        return None
    return str(path), digest


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)
