"""Archives of strangers: what they hold, before anything reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from attacks_pool.errors import InputError


def members(path: Path, what: str) -> list[str]:
    """The names in a zip archive, which ``.pt`` and ``.pt2`` files are; none in another file.

    Args:
        path: the file.
        what: how errors call it.

    Raises:
        InputError: a name leads out of the archive (``../x``, ``/x``, ``C:\\x``).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []
    for name in names:
        if escapes(name):
            raise InputError(f"{what} holds {name!r}, which leads out of the archive: it is not read")
    return names


def escapes(name: str) -> bool:
    """Whether a member's name leads out of the folder that an archive is unpacked into."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        posix.is_absolute() or bool(windows.drive or windows.root) or ".." in {*posix.parts, *windows.parts}
    )
