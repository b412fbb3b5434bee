"""Finds files and folders below ``--data-dir``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attacks_pool.errors import InputError


def locate(
    name: str, data_dir: Path | None, relative: str, *, or_suffix: str = "", folders: Sequence[str] = ()
) -> Path:
    """The file ``relative`` below ``data_dir``, or the one with ``or_suffix`` appended if only that exists.

    It may also lie in one of ``folders`` there.

    Raises:
        InputError: No directory was given, or the file does not exist.
    """
    if data_dir is None:
        raise InputError(
            f"data set {name!r} is read from files: give --data-dir, a folder in torchvision's layout "
            f"(it must hold {relative})"
        )
    path = data_dir / relative
    places = [data_dir / folder / relative for folder in folders]
    for candidate in (path, path.with_name(path.name + or_suffix), *places):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"data set {name!r}: no file {path}: --data-dir must hold torchvision's layout ({relative}); "
        "nothing is downloaded"
    )


def locate_folder(name: str, data_dir: Path | None, folders: Sequence[str], inside: str) -> Path:
    """The folder that has ``inside``: ``data_dir`` itself, or the first of ``folders`` below it.

    Raises:
        InputError: No directory was given, or none has ``inside``.
    """
    if data_dir is None:
        raise InputError(
            f"data set {name!r} is read from files: give --data-dir, a folder that holds "
            f"{folders[0]}/{inside}"
        )
    for folder in (data_dir, *(data_dir / one for one in folders)):
        if (folder / inside).exists():
            return folder
    raise InputError(
        f"data set {name!r}: neither {data_dir} nor {' or '.join(folders)} in it has {inside}; "
        "nothing is downloaded"
    )
