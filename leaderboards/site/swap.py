"""Replaces a directory atomically, and never overwrites files that this program did not write."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from leaderboards.errors import RecordError, os_errors
from leaderboards.records.layout import temporary_for
from leaderboards.records.lock import is_alive

MARKER: Final = ".advbench-site.json"


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` to build in, which replaces it if the block ends without an error.

    An existing target is replaced only if it is empty or a site made by `replacing`, without added files.

    Raises:
        RecordError: the target has other contents, or the directory cannot be written.
    """
    # Follow links, so that the target of a link is replaced, not the link.
    target = Path(target).resolve()
    _check(target)
    with os_errors(f"cannot write the site {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_strays(target)
        building = temporary_for(target)
        building.mkdir()
        try:
            yield building
            entries = sorted(entry.name for entry in building.iterdir())
            (building / MARKER).write_text(json.dumps({"site": 1, "entries": entries}) + "\n", "utf-8")
            _check(target)
            _swap(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _check(target: Path) -> None:
    """Refuse a target that has contents other than a site made by `replacing`."""
    try:
        names = {entry.name for entry in target.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise RecordError(f"--out {target} is a file, or lies below one: name a directory") from error
    except OSError as error:
        raise RecordError(f"cannot read --out {target}: {error.strerror}") from error
    if not names:
        return
    try:
        known = set(json.loads((target / MARKER).read_text("utf-8"))["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"--out {target} is not empty and not a site made here: name a new directory, or empty it"
        ) from error
    if strange := sorted(names - known - {MARKER}):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise RecordError(
            f"--out {target} contains {strange[0]!r}{more}, which is not part of the site and would be lost: "
            "move it away, or name another directory"
        )


def _swap(building: Path, target: Path) -> None:
    if not target.exists():
        building.rename(target)
        return
    old = temporary_for(target)
    target.rename(old)
    try:
        building.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _clear_strays(target: Path) -> None:
    """Remove the leftovers of killed builds of this directory."""
    named = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[0-9a-f]{{8}}\.tmp")
    for path in target.parent.iterdir():
        found = named.fullmatch(path.name)
        if found and path.is_dir() and not path.is_symlink() and not is_alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
