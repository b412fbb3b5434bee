"""Checks of untrusted model archives before anything reads them."""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from attacks_pool.errors import InputError

SCRIPT, PROGRAM = "a TorchScript program", "an exported program"
STATE_MEMBERS = re.compile(
    r"(?:[^/]+/)?(?:data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[0-9]+)"
)
"""The members that ``torch.save`` writes for a state dict."""
MAGIC = b"PK\x03\x04"
"""The first bytes of a file that torch reads as an archive."""


def kind_of(entries: Iterable[zipfile.ZipInfo]) -> str | None:
    """The kind of torch program in an archive with these members; None if it is not a program."""
    names = [entry.filename for entry in entries]
    if any(name.endswith("archive_format") for name in names):
        return PROGRAM
    return SCRIPT if any(name.endswith("/constants.pkl") for name in names) else None


def check_state(path: Path, what: str) -> None:
    """Refuse an archive that contains more than a state dict, before torch opens it.

    Args:
        path: a file of weights, in an archive or not.
        what: its name in errors.

    Raises:
        InputError: it is a program, has members that a state dict lacks, or claims more bytes than it has.
    """
    entries = members(path, what)
    other = [entry.filename for entry in entries if not STATE_MEMBERS.fullmatch(entry.filename)]
    if other:
        kind = kind_of(entries)
        said = f"are {kind}" if kind else f"hold {other[0]!r}, which no state dict has"
        raise InputError(
            f"{what} {said}, and a program can run any code: save its state_dict() as safetensors, or, if "
            "you trust it, give it with --model FILE --trust"
        )
    # torch.save does not compress, so a genuine archive cannot unpack to more bytes than it has.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise InputError(
            f"{what} hold compressed members, which torch.save does not write: they are not read"
        )


def members(path: Path, what: str) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, such as a ``.pt`` or ``.pt2`` file; none for other files.

    Args:
        path: the file.
        what: its name in errors.

    Raises:
        InputError: a name leads out of the archive (``../x``, ``/x``, ``C:\\x``), or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                raise InputError(f"{what} cannot be read: a damaged archive") from error
        return []
    for entry in entries:
        if escapes(entry.filename):
            raise InputError(
                f"{what} holds {entry.filename!r}, which leads out of the archive: it is not read"
            )
    return entries


def escapes(name: str) -> bool:
    """Whether a member's name leads out of the folder that an archive is unpacked into."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        posix.is_absolute() or bool(windows.drive or windows.root) or ".." in {*posix.parts, *windows.parts}
    )
