"""Run directories on disk: atomic writes, exclusive creation, and reading."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.layout import RECORD, temporary_for
from leaderboards.records.limits import read_arrays, read_bounded
from leaderboards.records.lock import claim
from leaderboards.records.record import Record, parse_record

Bools = NDArray[np.bool_]


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file atomically: readers, even after a crash, find either the old or the complete new content.

    Raises:
        RecordError: the file cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    with replacing_file(path) as temporary, temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A path for a temporary file, which replaces ``path`` if the block ends without an error.

    Raises:
        RecordError: the file cannot be written; an existing file is then unchanged.
    """
    temporary = temporary_for(path)
    with os_errors(f"cannot write {path}"):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    # A rename survives a power cut only once the directory is on disk. Windows cannot open directories.
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> Path:
    """Write JSON, indented, in UTF-8, atomically; floats keep full precision.

    Raises:
        RecordError: the file cannot be written, or a text is not valid UTF-8.
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    return write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The bytes that `write_json` writes.

    Raises:
        RecordError: a text is not valid UTF-8, which can happen with file names.
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        near = text[max(error.start - 20, 0) : error.end + 20].strip()
        raise RecordError(f"{near!a} contains bytes that are not UTF-8: a record cannot hold them") from None


def write_record(run_dir: Path, record: Record) -> Path:
    """Write ``record.json`` into a run directory, atomically; returns its path."""
    return write_json(Path(run_dir) / RECORD, record.dump())


def write_outcomes(path: Path, clean: Bools, robust: Bools, *, probes: Bools | None = None) -> None:
    """Write per-point outcomes, atomically; the same arrays always give the same bytes.

    ``clean`` is boolean (T+1, n); ``robust`` is boolean (T+1, A, n), attacks in the record's order, False
    for points on which an attack was not measured. ``probes`` is boolean (P, m): which of the first m points
    survive each of the audit's probes.

    Raises:
        RecordError: the file cannot be written.
        ValueError: dtypes or shapes do not fit.
    """
    if fault := _outcome_fault(clean, robust):
        raise ValueError(fault)
    arrays = {"clean": clean, "robust": robust} | ({} if probes is None else {"probes": probes})
    contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **contiguous)
    write_bytes(path, buffer.getvalue())


def read_outcomes(path: Path) -> tuple[Bools, Bools]:
    """Read what `write_outcomes` wrote: (clean, robust).

    Raises:
        RecordError: the file is missing, damaged or too large, or has other contents.
    """
    arrays = _read(path, ("clean", "robust"))
    return arrays["clean"], arrays["robust"]


def read_all_outcomes(path: Path) -> tuple[Bools, Bools, Bools]:
    """The arrays (clean, robust) of `read_outcomes`, then which points survive each of the audit's probes.

    The last is (P, m), in the order of the audit's cells; (0, 0) if none is stored.

    Raises:
        RecordError: the file is missing or damaged, or has other contents.
    """
    arrays = _read(path, ("clean", "robust", "probes"))
    probes = arrays.get("probes", np.zeros((0, 0), dtype=bool))
    if probes.dtype != np.bool_ or probes.ndim != 2:
        raise RecordError(f"damaged outcomes {path}: probes must be boolean (P, m)")
    return arrays["clean"], arrays["robust"], probes


def _read(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with os_errors(f"cannot read outcomes {path}"):
            arrays = read_arrays(path, names)
        clean, robust = arrays["clean"], arrays["robust"]
    except RecordError:
        raise
    except Exception as error:
        # Damaged files make zipfile, zlib and numpy's header parser raise a dozen unrelated exceptions.
        raise RecordError(f"damaged outcomes {path}: expected an npz with clean and robust") from error
    if fault := _outcome_fault(clean, robust):
        raise RecordError(f"damaged outcomes {path}: {fault}")
    return arrays


def read_probe_outcomes(path: Path) -> Bools:
    """The probes' outcomes, the last array of `read_all_outcomes`.

    Raises:
        RecordError: the file is missing or damaged, or has other contents.
    """
    return read_all_outcomes(path)[2]


def _outcome_fault(clean: NDArray[Any], robust: NDArray[Any]) -> str | None:
    if clean.dtype != np.bool_ or robust.dtype != np.bool_:
        return f"clean and robust must be boolean, not {clean.dtype} and {robust.dtype}"
    if clean.ndim != 2 or robust.ndim != 3 or clean.shape != (robust.shape[0], robust.shape[2]):
        return f"expected clean (T+1, n) and robust (T+1, A, n), not {clean.shape} and {robust.shape}"
    return None


def new_run_directory(runs_dir: Path, stem: str) -> Path:
    """Create a new directory ``runs_dir/stem``, or ``stem-2``, ``stem-3``… if the name is taken.

    ``runs_dir`` is created if missing. Many processes may call this at once: each gets its own directory.

    Raises:
        RecordError: ``stem`` is not a plain name, or ``runs_dir`` is a file or cannot be written.
    """
    runs_dir = Path(runs_dir)
    if not stem or stem in (".", "..") or Path(stem).name != stem or "\\" in stem:
        raise RecordError(f"a run's name must be one plain directory name, not {stem!r}")
    with os_errors(f"cannot create runs directory {runs_dir}"):
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            fault = f"runs directory {runs_dir} is a file or lies below one: name another"
            raise RecordError(fault) from error
    for number in count(1):
        path = runs_dir / (stem if number == 1 else f"{stem}-{number}")
        with os_errors(f"cannot create a run in {runs_dir}"), contextlib.suppress(FileExistsError):
            _make(path)
            return path
    raise AssertionError("unreachable: count() has no end")


def _make(path: Path) -> None:
    """Make a directory and sign it, so that no process considers it abandoned."""
    while True:
        path.mkdir()
        try:
            return claim(path)
        except FileNotFoundError:
            # A cleanup removed the directory while it was empty.
            continue
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise


def read_record(path: Path) -> Record:
    """Read a record from a run directory or from its ``record.json``.

    Raises:
        RecordError: there is no record, or it cannot be read (see `parse_record`).
    """
    path = Path(path)
    if path.is_dir():
        path = path / RECORD
    missing = f"no record at {path}: the run did not finish, or this is not a run"
    with os_errors(f"cannot read {path}", missing):
        data = read_bounded(path)
    return parse_record(data, str(path))


def run_paths(runs_dir: Path) -> list[str]:
    """The paths of everything in a runs directory, in path order, whether or not it is a run.

    Raises:
        RecordError: there is no such directory.
    """
    runs_dir = Path(runs_dir)
    if not runs_dir.is_dir():
        raise RecordError(f"no runs directory at {runs_dir}: run `advbench run` first")
    with os_errors(f"cannot read runs directory {runs_dir}"):
        return [os.path.join(runs_dir, name) for name in sorted(os.listdir(runs_dir))]
