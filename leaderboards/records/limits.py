"""How large the files of a run may be: they come from strangers, and what they claim is not allocated."""

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
"""Bytes of one JSON file or list of checksums; the largest published record has 50 kB."""
MOST_STRING: Final = 2**16
"""Letters of one text in a record."""
MOST_NAME: Final = 300
"""Letters of one name: of a run, a defense, a data set, an attack; the name of any file or folder fits."""
MOST_ATTACK: Final = 1000
"""Letters of an attack with its knobs; the longest known has 92."""
MOST_SETTING: Final = 4096
"""Letters of one text in a configuration, among them paths."""
MOST_OUTCOMES: Final = 64 * 2**20
"""Bytes of all outcomes of a run as they are unpacked: a byte for each stage, attack and point."""
MOST_HEADER: Final = 16 * 2**20
"""Bytes of the header of a safetensors file."""
MOST_POINTS: Final = 10**7
"""Test points; no data set has as many."""
MOST_STAGE: Final = 9999
"""The largest index of a stage."""
MOST_ENTRIES: Final = 100_000
"""Entries of one list of a record, and of its matrix."""
MOST_COUNT: Final = 2**63 - 1
"""What fits the integers of numpy."""


def read_bounded(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a plain file that has no more than ``most`` bytes.

    Raises:
        OSError: it is not there or cannot be read.
        RecordError: it is larger, or no plain file.
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
    """What the system says of a file; it is asked before the file is opened, which may wait for ever.

    Raises:
        OSError: it is not there.
        RecordError: it is no plain file; a directory is left to whoever opens it.
    """
    found = os.stat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise RecordError(f"cannot read {path}: it is no plain file")
    return found


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an npz by name, those that it has; their sizes are checked before anything is unpacked.

    Raises:
        RecordError: they are larger than outcomes may be, or it is no plain file.
        Exception: whatever zipfile, zlib and numpy answer damage with.
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
    """The array in a member of ``size`` bytes; a header that claims more or less than that is refused."""
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
    """What is wrong with the header of a safetensors file before it is read; empty where nothing is.

    Raises:
        OSError: the file cannot be read.
        RecordError: it is no plain file.
    """
    check_plain(path)
    with open(path, "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    return f"a header of {claimed} bytes, {MOST_HEADER} are allowed" if claimed > MOST_HEADER else ""
