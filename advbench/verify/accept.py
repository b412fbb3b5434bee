"""``advbench accept``: unpacks an untrusted archive safely, verifies its run, and adds it completely."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from advbench.runs.directory import discard, now, plain_name
from advbench.runs.saved import Run
from advbench.runtime.timeouts import limited_verification
from advbench.runtime.version import __version__
from advbench.verify.attack_again import Told, verify_run
from advbench.verify.report import Report
from advbench.verify.sample import Asked
from attacks_pool import InputError
from leaderboards import (
    RecordError,
    Refuted,
    Verified,
    digests_of,
    read_record,
    remove_refuted,
    remove_verified,
    trust_of,
    unpack,
    write_refuted,
    write_verified,
)

MOST_FAULTS, LONGEST = 1000, 2000
"""The most lines of a mark, and characters per line, since the lines quote untrusted records."""


def mark(report: Report) -> str:
    """Write the mark of a verification; return a line that says what was done.

    ``re-evaluated`` needs every stage and every attack, each on at least one whole block of test points, and
    a repeated audit. ``retrained`` needs an exact repetition and is the stronger mark: no later re-evaluation
    replaces it. A partial check confirms the run but does not mark it. A refuted run loses its mark and is
    marked as refuted, so that leaderboards do not rank it.

    Raises:
        RecordError: the mark cannot be written or removed.
    """
    if not report.confirmed:
        return _refute(report)
    if not report.complete and report.how == "retrained":
        return "not marked as retrained: the repetition was not exact"
    if not report.complete:
        return "not marked as re-evaluated: that needs every stage and every attack"
    before = trust_of(report.path)
    remove_refuted(report.path)
    if before == "retrained" and report.how != "retrained":
        return "its mark as retrained stays, which is stronger than re-evaluated"
    write_verified(
        report.path,
        Verified(
            run=report.run,
            how="retrained" if report.how == "retrained" else "re-evaluated",
            when=now(),
            files=digests_of(report.path),
            sample={
                **report.sample,
                "compared": report.compared,
                "discordant": report.discordant,
                "not_looked_at": report.not_looked_at,
            },
            machine=report.machine,
            version=__version__,
        ),
    )
    return f"marked as {report.how}"


def _refute(report: Report) -> str:
    before = trust_of(report.path)
    removed = remove_verified(report.path)
    write_refuted(
        report.path,
        Refuted(
            run=report.run,
            when=now(),
            files=digests_of(report.path),
            faults=[_cut(fault) for fault in report.faults[:MOST_FAULTS]],
            version=__version__,
        ),
    )
    lost = before if before in ("retrained", "re-evaluated") else "verified"
    return (
        f"its mark as {lost} was taken away, and it is marked as refuted" if removed else "marked as refuted"
    )


def _cut(fault: str) -> str:
    half = LONGEST // 2
    return fault if len(fault) <= LONGEST else f"{fault[:half]} … {fault[-half:]}"


@dataclass(frozen=True)
class Accepted:
    """The result for an archive: the verification, and the run's new path (None if it was refuted).

    ``known`` says that exactly this run existed already.
    """

    report: Report
    place: Path | None
    known: bool = False


def accept(
    file: Path,
    runs_dir: Path,
    *,
    asked: Asked | None = None,
    trust: bool = False,
    data_dir: str | None = None,
    surrogate: Run | None = None,
    weights: Path | None = None,
    told: Told | None = None,
    timeout: float | None = None,
) -> Accepted:
    """Verify an archive of ``advbench submit`` and add it to ``runs_dir`` in one step, or leave no trace.

    If another run has the same id, a number is appended to the directory's name of the new run.

    Args:
        file: the archive.
        runs_dir: where to add the run; created if missing.
        asked: the extent of the verification, which must include every stage and every attack.
        trust: import a model factory, or load a program, that the record names: both can run any code.
        data_dir: the folder of the data.
        surrogate, weights, told: see `verify_run`.
        timeout: seconds that unpacking and verifying may take; nothing is added after them.

    Raises:
        RecordError: the file is not such an archive, is damaged or has files that a run does not have; or
            ``runs_dir`` cannot be written.
        InputError: it cannot be verified here, or not in time.
    """
    runs_dir = Path(runs_dir)
    with _place(runs_dir) as (directory, leave):
        # Cleaning up and adding are outside the time limit, so that neither is stopped halfway.
        with limited_verification(timeout, f"accepting {file}", leave=leave):
            unpack(Path(file), directory)
            record = read_record(directory)
            if plain_name(record.id) != record.id or record.id.startswith(".") or not record.id:
                raise RecordError(
                    f"the archive's run is called {record.id!r}, which is not a valid name of a run"
                )
            run = Run(directory, record, trust, data_dir)
            report = verify_run(run, asked, surrogate=surrogate, weights=weights, told=told)
        if not report.confirmed:
            return Accepted(report, None)
        if not report.complete:
            raise InputError("a run is accepted only if every stage and every attack was checked")
        mark(report)
        place, known = _add(directory, runs_dir, record.id)
        report.path = place
        if known:
            mark(report)
    return Accepted(report, place, known)


@contextmanager
def _place(runs_dir: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A hidden directory in ``runs_dir``, and a function that removes it with everything created for it."""
    made = [path for path in (runs_dir, *runs_dir.parents) if not path.exists()]
    # Use the name pattern of temporary files, so that advbench runs gc finds it if this process is killed.
    directory = runs_dir / f".accept.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        directory.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RecordError(f"runs directory {runs_dir} is a file or lies below one: name another") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RecordError(f"cannot create runs directory {runs_dir}: {reason}") from error

    leave = partial(discard, directory, made)
    try:
        yield directory, leave
    finally:
        leave()


def _add(directory: Path, runs_dir: Path, name: str) -> tuple[Path, bool]:
    """Move the directory to its name in one step; or return the path of an equal existing run, and True."""
    digests = digests_of(directory)
    for number in count(1):
        target = runs_dir / (name if number == 1 else f"{name}-{number}")
        if target.exists():
            with contextlib.suppress(RecordError):
                if digests_of(target) == digests:
                    return target, True
            continue
        try:
            # If a directory appears meanwhile and is not empty, renaming fails and nothing is lost.
            directory.rename(target)
        except OSError as error:
            if target.exists():
                continue
            reason = error.strerror or type(error).__name__
            raise RecordError(f"cannot add a run to {runs_dir}: {reason}") from error
        return target, False
    raise AssertionError("unreachable: count() has no end")
