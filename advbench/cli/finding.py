"""Find runs by directory, by record, or by name in a runs directory."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from advbench.cli.options import runs_dirs


def find_run(name: str, places: Sequence[Path]) -> Path:
    """Find a run by its directory, its record or its name in one of the runs directories.

    Raises:
        RecordError: there is no such run.
    """
    from leaderboards import RecordError
    from leaderboards.records.inventory import entry_of, run_directories

    for path in (Path(name), *(place / name for place in places)):
        place = path.parent if path.name == "record.json" else path
        if place.is_dir() and entry_of(place) is not None:
            return place
    names = [path.name for place in places if place.is_dir() for path in run_directories(place)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    where = " or ".join(map(str, places))
    raise RecordError(f"no run {name!r} here or in {where}{hint} (advbench runs lists them)")


def named_run(path: Path, runs_dir: list[Path] | None) -> Path:
    """The path itself if it exists, otherwise the run of this name in the runs directories.

    Raises:
        RecordError: there is no such run.
    """
    return path if path.exists() else find_run(str(path), runs_dirs(runs_dir))


def surrogate_run(path: Path | None, runs_dir: list[Path] | None) -> Path | None:
    """Apply `named_run` to an optional path."""
    return None if path is None else named_run(path, runs_dir)


def kept_in(path: Path, runs_dir: Path) -> Path:
    """The run of this name in ``runs_dir`` if only that exists, otherwise the path itself."""
    inside = runs_dir / path
    return inside if inside.exists() and not path.exists() else path
