"""Find runs by directory, by record, or by name in a runs directory."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path


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
