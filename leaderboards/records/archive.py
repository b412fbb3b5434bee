"""Archives of finished runs for sending to others: written reproducibly, read without trusting the sender."""

import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.checking import check_run
from leaderboards.records.checksums import listed_files
from leaderboards.records.layout import CHECKSUMS, OUTCOMES, RECORD
from leaderboards.records.limits import MOST_TEXT, check_plain
from leaderboards.records.store import read_record, replacing_file

NAMES: Final = re.compile(
    r"record\.json|outcomes\.npz|SHA256SUMS|run\.json|model\.safetensors|regenerated\.png"
    r"|stages/(0|[1-9][0-9]{0,3})\.safetensors"
)
"""The only file names that an archive may contain."""
REQUIRED: Final = (RECORD, OUTCOMES, CHECKSUMS)
MOST_MEMBERS: Final = 1024
MOST_BYTES: Final = 4 * 2**30
"""The most bytes of all unpacked members together."""
_TIME: Final = (1980, 1, 1, 0, 0, 0)


def pack(run_dir: Path, out: Path) -> list[str]:
    """Write a finished run into a zip archive, without compression; the same files give the same bytes.

    Logs, locks and marks of verification are left out.

    Args:
        run_dir: a complete run; the files that its checksums list are packed.
        out: the archive, which must not exist.

    Returns:
        The names of the members.

    Raises:
        RecordError: the run is unfinished or damaged, has no checksums or contains files that an archive may
            not, or the archive exists already or cannot be written.
    """
    run_dir, out = Path(run_dir), Path(out)
    read_record(run_dir)
    problems = check_run(run_dir).problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecordError(f"run {run_dir.name} is damaged and cannot be sent: {problems[0]}{more}")
    names = sorted({*listed_files(run_dir), CHECKSUMS})
    for name in names:
        if not NAMES.fullmatch(name):
            raise RecordError(f"run {run_dir.name} has {name!r}, which is not part of a run: move it away")
    missing = [name for name in names if not (run_dir / name).exists()]
    if missing:
        raise RecordError(f"run {run_dir.name} has no {missing[0]}: only a run with its weights can be sent")
    total = sum((run_dir / name).stat().st_size for name in names)
    if total > MOST_BYTES:
        raise RecordError(f"run {run_dir.name} has {total} bytes; an archive holds {MOST_BYTES} at most")
    if out.exists():
        raise RecordError(f"{out} exists already: name another with --out")
    with replacing_file(out) as temporary:
        _write(run_dir, names, temporary)
    return names


def _write(run_dir: Path, names: list[str], out: Path) -> None:
    with zipfile.ZipFile(out, "x", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _TIME)
            # The archive must not depend on the writer's system or its permissions.
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            entry.file_size = (run_dir / name).stat().st_size
            with (run_dir / name).open("rb") as source, archive.open(entry, "w") as member:
                shutil.copyfileobj(source, member, 2**20)


def unpack(file: Path, directory: Path) -> list[str]:
    """Unpack an untrusted archive into an empty directory; nothing in it is executed or trusted.

    All members are checked before the first is written: they must have names that a run has, without
    duplicates, be plain files without compression, and be as large as they claim.

    Returns:
        The names of the members.

    Raises:
        RecordError: the file is not such an archive, or is damaged; part of it may have been unpacked.
    """
    file, directory = Path(file), Path(directory)
    missing = f"no archive at {file}: advbench submit makes one"
    try:
        with os_errors(f"cannot read archive {file}", missing), _opened(file) as archive:
            entries = archive.infolist()
            for fault in _faults(entries, file.stat().st_size):
                raise RecordError(f"archive {file}: {fault}")
            for entry in entries:
                place = directory / entry.filename
                place.parent.mkdir(exist_ok=True)
                with archive.open(entry) as source, place.open("xb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                    target.flush()
                    os.fsync(target.fileno())
    except RecordError:
        raise
    except Exception as error:
        # Damage makes zipfile raise its own errors and those of struct, zlib and others.
        raise RecordError(f"archive {file} is not an archive of advbench submit, or is damaged") from error
    return [entry.filename for entry in entries]


def _opened(file: Path) -> zipfile.ZipFile:
    check_plain(file)
    return zipfile.ZipFile(file)


def _faults(entries: list[zipfile.ZipInfo], size: int) -> Iterator[str]:
    """One line for each fault of the members; the archive has ``size`` bytes."""
    if len(entries) > MOST_MEMBERS:
        yield f"{len(entries)} members, a run has {MOST_MEMBERS} at most"
    names: set[str] = set()
    for entry in entries:
        # Check the original name: zipfile cuts names at a NUL and changes backslashes on some systems.
        if not NAMES.fullmatch(entry.filename) or entry.orig_filename != entry.filename:
            yield f"it contains {entry.orig_filename!r}, which is not a file of a run"
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.is_dir() or kind not in (0, stat.S_IFREG):
            yield f"{entry.filename!r} is not a plain file"
        if entry.filename in names:
            yield f"{entry.filename!r} is listed twice"
        names.add(entry.filename)
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            yield f"{entry.filename!r} is compressed or encrypted, which advbench submit does not do"
        if not entry.filename.endswith(".safetensors") and entry.file_size > MOST_TEXT:
            yield f"{entry.filename!r} has {entry.file_size} bytes, {MOST_TEXT} are allowed"
    # Members without compression cannot hold more than the archive, unless they overlap.
    total = sum(entry.file_size for entry in entries)
    if total > min(size, MOST_BYTES):
        yield f"its members claim {total} bytes, which is more than possible"
    for name in REQUIRED:
        if name not in names:
            yield f"it contains no {name}"


def outcomes_size(path: Path) -> int:
    """The bytes that the arrays of an ``outcomes.npz`` claim to need in memory; nothing is unpacked.

    Raises:
        RecordError: the file is not a valid ``outcomes.npz``.
    """
    try:
        with _opened(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"damaged outcomes {path}: expected an npz with clean and robust") from error
