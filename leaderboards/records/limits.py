"""Size limits for the files of a run, which may be untrusted, and readers that enforce the limits."""

import math
import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.errors import RecordError

MOST_TEXT: Final = 16 * 2**20
"""The most bytes of a JSON file or list of checksums; the largest published record has 50 kB."""
MOST_STRING: Final = 2**16
"""The most characters of one text in a record."""
MOST_NAME: Final = 300
"""The most characters of the name of a run, defense, data set or attack; any file or folder name fits."""
MOST_ATTACK: Final = 1000
"""The most characters of an attack with its knobs; the longest known has 92."""
MOST_SETTING: Final = 4096
"""The most characters of one text in a configuration, which includes paths."""
MOST_OUTCOMES: Final = 64 * 2**20
"""The most bytes of a run's unpacked outcomes, with a byte for each stage, attack and point."""
MOST_HEADER: Final = 16 * 2**20
"""The most bytes of the header of a safetensors file."""
MOST_POINTS: Final = 10**7
"""The most test points; no data set has as many."""
MOST_STAGE: Final = 9999
"""The largest index of a stage."""
MOST_ENTRIES: Final = 100_000
"""The most entries of a list of a record, and of its matrix."""
MOST_COUNT: Final = 2**63 - 1
"""The largest integer that fits numpy's integers."""


def read_bounded(path: Path, most: int = MOST_TEXT) -> bytes:
    """Read a plain file of at most ``most`` bytes.

    Raises:
        OSError: the file is missing or cannot be read.
        RecordError: the file is larger, or is not a plain file.
    """
    found = check_plain(path)
    if found.st_size > most:
        raise RecordError(f"cannot read {path}: it has {found.st_size} bytes, {most} are allowed")
    with open(path, "rb") as file:
        data = file.read(found.st_size + 1)
    if len(data) > found.st_size:
        raise RecordError(f"cannot read {path}: it is being written")
    return data


def check_plain(path: Path) -> os.stat_result:
    """The status of a file that is not a pipe or device, which could block for ever when opened.

    Raises:
        OSError: the file does not exist.
        RecordError: it is not a plain file; directories are accepted here, and fail when opened.
    """
    found = os.stat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise RecordError(f"cannot read {path}: it is not a plain file")
    return found


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an npz by name, as far as it has them; sizes are checked before anything is unpacked.

    Raises:
        RecordError: the arrays are larger than outcomes may be, or the file is not a plain file.
        Exception: zipfile, zlib and numpy raise various errors for a damaged file.
    """
    check_plain(path)
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_OUTCOMES:
            raise RecordError(f"damaged outcomes {path}: {size} bytes, {MOST_OUTCOMES} are allowed")
        for name in names:
            entry = entries.get(f"{name}.npy")
            if entry is None:
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed as numpy does not compress")
            with archive.open(entry) as member:
                found[name] = _array(member, entry.file_size)
    return found


def _array(member: IO[bytes], size: int) -> NDArray[Any]:
    """The array in a member of ``size`` bytes; a header that claims another size is refused."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = readers[np.lib.format.read_magic(member)](member)
    length = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or member.tell() + length != size:
        raise ValueError(f"an array of shape {shape} and type {dtype} in {size} bytes")
    flat = np.frombuffer(member.read(length), dtype=dtype)
    if dtype == np.bool_ and (flat.view(np.uint8) > 1).any():
        raise ValueError("booleans that are neither 0 nor 1")
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def weights_fault(path: Path) -> str:
    """The fault of a safetensors file's header, checked before the file is read; empty if there is none.

    Raises:
        OSError: the file cannot be read.
        RecordError: it is not a plain file.
    """
    check_plain(path)
    with open(path, "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    return f"a header of {claimed} bytes, {MOST_HEADER} are allowed" if claimed > MOST_HEADER else ""
