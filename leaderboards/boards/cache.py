"""A cache of the records and outcomes of a runs directory, kept in one hidden file in that directory.

The cache stores valid records, outcomes packed to bits, and whether the outcomes fit the record. Each entry
is keyed by the size, times and inode of its files and is used only while all of these are unchanged. A file
that changed less than two seconds before it was read is not cached, because a second change could leave the
same times. The cache file is used as a whole or not at all: its checksum must match, and the same version of
the code must have written it. It is written atomically, if that saves reading fifty files or more; if writing
fails, only time is lost. It holds at most 64 MB of outcomes; the rest is read from the runs each time.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydantic_core

from leaderboards.audits.contradictions import first_contradiction
from leaderboards.audits.finished import read_finished
from leaderboards.boards.bracketing import with_certificates
from leaderboards.errors import RecordError
from leaderboards.records.layout import OUTCOMES, RECORD
from leaderboards.records.limits import check_plain
from leaderboards.records.record import Record
from leaderboards.records.store import (
    Bools,
    read_all_outcomes,
    read_outcomes,
    read_record,
    run_paths,
    write_bytes,
)
from leaderboards.statistics.results import Conditions, Result, result_of

NAME: Final = ".leaderboard-cache"
WORTHWHILE: Final = 50
LIMIT: Final = 64_000_000
_SETTLED: Final = 2_000_000_000
"""Nanoseconds after which a change to a file is certain to change its times."""
_MAGIC: Final = b"advbench leaderboard cache\n"

Key = list[int]


class Cache:
    """The cached results and outcomes of one runs directory."""

    def __init__(self, runs_dir: Path) -> None:
        self.path = Path(runs_dir) / NAME
        self._results: dict[str, tuple[Key, Result]] = {}
        self._old: dict[str, list[Any]] = {}
        self._outcomes: dict[str, tuple[Key, list[int], bytes | memoryview]] = {}
        self._contradictions: dict[str, tuple[Key, str]] = {}
        self._conditions: dict[str, Conditions] = {}
        self._packed = 0
        self._new = 0
        # Treat a cache file with any fault as missing.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError):
            check_plain(self.path)
            self._load(self.path.read_bytes())

    def result(self, directory: str, found: os.stat_result) -> Result | None:
        """The cached result of a run; None if its record has changed since."""
        name = directory.rpartition(os.sep)[2]
        old = self._old.get(name)
        if old is None or old[0] != _key(found):
            return None
        key, group, values = old
        result = Result(
            **values, group=group, conditions=self._conditions[group], directory=directory, cache=self
        )
        self._results[name] = (key, result)
        return result

    def keep(self, result: Result, found: os.stat_result | None) -> Result:
        """Cache a result that was just read; ``found`` is the status of its record before reading."""
        # The seeds of one row share one conditions object, in memory and in the file.
        shared = self._conditions.setdefault(result.group, result.conditions)
        result = replace(result, conditions=shared)
        if found is not None and _settled(found):
            self._results[result.directory.rpartition(os.sep)[2]] = (_key(found), result)
            self._new += 1
        return result

    def outcomes(self, directory: str) -> tuple[Bools, Bools]:
        """The outcomes (clean, robust) of a run, see `read_outcomes`.

        Raises:
            RecordError: the outcomes are missing or cannot be read.
        """
        name, path = directory.rpartition(os.sep)[2], f"{directory}{os.sep}{OUTCOMES}"
        found = None
        with contextlib.suppress(OSError):
            found = os.stat(path)
        kept = self._outcomes.get(name)
        if found is not None and kept is not None and kept[0] == _key(found):
            return _unpack(kept[1], kept[2])
        clean, robust = read_outcomes(Path(path))
        self._keep_outcomes(name, found, clean, robust)
        return clean, robust

    def contradiction(self, directory: str, record: Record | None = None) -> str:
        """How the outcomes of a run contradict its ``record``, if read already, see `contradiction_of`.

        Raises:
            RecordError: the record cannot be read.
        """
        name = directory.rpartition(os.sep)[2]
        try:
            found = [os.stat(f"{directory}{os.sep}{file}") for file in (RECORD, OUTCOMES)]
        except OSError:
            # Without outcomes, nothing contradicts the record.
            return ""
        key = [*_key(found[0]), *_key(found[1])]
        kept = self._contradictions.get(name)
        if kept is not None and kept[0] == key:
            return kept[1]
        try:
            clean, robust, probes = read_all_outcomes(Path(directory) / OUTCOMES)
        except RecordError:
            return ""
        self._keep_outcomes(name, found[1], clean, robust)
        line = first_contradiction(record or read_record(Path(directory)), clean, robust, probes)
        if all(map(_settled, found)):
            self._contradictions[name] = (key, line)
            self._new += 1
        return line

    def _keep_outcomes(self, name: str, found: os.stat_result | None, clean: Bools, robust: Bools) -> None:
        kept = self._outcomes.get(name)
        if found is not None and _settled(found):
            packed = np.packbits(np.concatenate([clean.ravel(), robust.ravel()])).tobytes()
            before = 0 if kept is None else len(kept[2])
            if self._packed + len(packed) - before <= LIMIT:
                self._outcomes[name] = (_key(found), list(robust.shape), packed)
                self._packed += len(packed) - before
                self._new += 1

    def save(self) -> None:
        """Write the cache file if that is worthwhile; a failure to write is ignored."""
        if self._new < WORTHWHILE:
            return
        self._new = 0
        with contextlib.suppress(RecordError):
            write_bytes(self.path, self._dump())

    def _load(self, data: bytes) -> None:
        head = len(_MAGIC)
        digest, body = data[head : head + 32], memoryview(data)[head + 32 :]
        if data[:head] != _MAGIC or hashlib.sha256(body).digest() != digest:
            return
        length = int.from_bytes(body[:8], "big")
        tree = pydantic_core.from_json(bytes(body[8 : 8 + length]))
        if tree["code"] != _code():
            return
        blob = body[8 + length :]
        self._conditions = {group: Conditions(**values) for group, values in tree["conditions"].items()}
        self._old = tree["results"]
        self._contradictions = {name: (key, line) for name, (key, line) in tree["contradictions"].items()}
        begin = 0
        for name, (key, shape, size) in tree["outcomes"].items():
            self._outcomes[name] = (key, shape, blob[begin : begin + size])
            begin += size
        self._packed = begin

    def _dump(self) -> bytes:
        found: dict[str, list[Any]] = {}
        conditions: dict[str, dict[str, Any]] = {}
        for name, (key, result) in self._results.items():
            values = {name: getattr(result, name) for name in _KEPT}
            found[name] = [key, result.group, values]
            if result.group not in conditions:
                conditions[result.group] = asdict(result.conditions)
        outcomes = {name: kept for name, kept in self._outcomes.items() if name in self._results}
        tree = {
            "code": _code(),
            "conditions": conditions,
            "results": found,
            "contradictions": {
                name: kept for name, kept in self._contradictions.items() if name in self._results
            },
            "outcomes": {name: [key, shape, len(bits)] for name, (key, shape, bits) in outcomes.items()},
        }
        text = json.dumps(tree, separators=(",", ":")).encode()
        body = b"".join([len(text).to_bytes(8, "big"), text, *(bits for _, _, bits in outcomes.values())])
        return _MAGIC + hashlib.sha256(body).digest() + body


def find_results(runs_dir: Path) -> tuple[list[Result], list[str]]:
    """All readable records of a directory as results, in path order, and one line for each damaged one.

    The same as `find_records`, but fast where most of the runs were read before.

    Raises:
        RecordError: there is no such directory.
    """
    paths = run_paths(runs_dir)
    cache = Cache(Path(runs_dir))
    results: list[Result] = []
    problems: list[str] = []
    for path in paths:
        try:
            found = os.stat(f"{path}{os.sep}{RECORD}")
        except (FileNotFoundError, NotADirectoryError):
            # There is no record yet: this is a run in progress or a stray file, not damage.
            continue
        except OSError:
            found = None
        known = cache.result(path, found) if found is not None else None
        try:
            result = known or _read(path, cache, found, problems)
            results.append(with_certificates(result, problems))
        except RecordError as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                problems.append(str(error))
    return results, problems


def find_all_results(runs_dirs: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """The results of several directories together, and one line for each damaged record: see `find_results`.

    Raises:
        RecordError: one of the directories does not exist.
    """
    results: list[Result] = []
    problems: list[str] = []
    for runs_dir in runs_dirs:
        found, faults = find_results(runs_dir)
        results += found
        problems += faults
    return results, problems


def _read(path: str, cache: Cache, found: os.stat_result | None, problems: list[str]) -> Result:
    record, changed = read_finished(Path(path))
    result = result_of(record, path, cache)
    # Compute and cache this now, while the record is in memory.
    cache.contradiction(path, record)
    if changed is None:
        return cache.keep(result, found)
    # A changed record is not cached: only undamaged results are.
    problems.append(changed)
    return result


_KEPT: Final = [
    one.name for one in fields(Result) if one.name not in ("group", "conditions", "directory", "cache")
]


def _key(found: os.stat_result) -> Key:
    # ctime cannot be set back, as mtime can; copying a file changes the inode.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _settled(found: os.stat_result) -> bool:
    return max(found.st_mtime_ns, found.st_ctime_ns) + _SETTLED < time.time_ns()


def _unpack(shape: list[int], bits: bytes | memoryview) -> tuple[Bools, Bools]:
    rows, attacks, n = shape
    size = rows * n * (attacks + 1)
    flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=size).view(np.bool_)
    return flat[: rows * n].reshape(rows, n), flat[rows * n :].reshape(rows, attacks, n)


@cache
def _code() -> str:
    """A hash of the code that decides which records are valid and what is cached of them."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for folder in ("records", "statistics", "audits"):
        for file in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest() + pydantic_core.__version__
