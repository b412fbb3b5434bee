"""Finds files below ``--data-dir``, which has torchvision's layout of data sets."""

from __future__ import annotations

from pathlib import Path

from attacks_pool.errors import InputError


def locate(name: str, data_dir: Path | None, relative: str, *, or_suffix: str = "") -> Path:
    """The file ``relative`` below ``data_dir``, or the one with ``or_suffix`` appended if only that exists.

    Raises:
        InputError: No directory was given, or the file does not exist.
    """
    if data_dir is None:
        raise InputError(
            f"data set {name!r} is read from files: give --data-dir, a folder in torchvision's layout "
            f"(it must hold {relative})"
        )
    path = data_dir / relative
    for candidate in (path, path.with_name(path.name + or_suffix)):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"data set {name!r}: no file {path}: --data-dir must hold torchvision's layout ({relative}); "
        "nothing is downloaded"
    )
