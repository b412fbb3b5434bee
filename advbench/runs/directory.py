"""The directory that a run writes to: a new one, its own unfinished one, or one that the user names."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from advbench.runs.pieces import holds_attack
from advbench.runtime.failures import ERROR_LOG
from attacks_pool import InputError
from leaderboards import (
    Manifest,
    Record,
    RunBusyError,
    find_unfinished,
    hold,
    json_bytes,
    new_run_directory,
    read_manifest,
    write_bytes,
    write_checksums,
    write_manifest,
)
from leaderboards.records.layout import CHECKPOINT, RECORD, STAGES, temporary_of


@dataclass(frozen=True)
class Place:
    """A run's directory, which is locked for this process, and whether it has work to resume from."""

    directory: Path
    resumed: bool


def unfinished(path: str | Path) -> tuple[Path, Manifest]:
    """The directory and manifest of a run that the user wants to resume.

    Raises:
        InputError: the run is complete.
        RecordError: the directory is not a run, or its manifest cannot be read.
    """
    directory = Path(path).expanduser()
    if (directory / RECORD).exists():
        raise InputError(f"run {directory.name} is complete: there is nothing to resume")
    return directory, read_manifest(directory)


@contextmanager
def place(
    runs_dir: Path, manifest: Manifest, *, resume: Path | None = None, fresh: bool = False
) -> Iterator[Place]:
    """Lock the directory of a run while it is written.

    Args:
        runs_dir: where new runs are created and unfinished ones are searched.
        manifest: of a new run; its ``id`` lacks the number that makes it unique. An unfinished run with its
            ``identity`` is resumed, unless that is empty.
        resume: the run to resume.
        fresh: do not search for an unfinished run.

    Raises:
        RecordError: the directory cannot be created or written, or another process writes it.
    """
    made = [path for path in (runs_dir, *runs_dir.parents) if not path.exists()]
    with ExitStack() as stack:
        found = _held(stack, runs_dir, "" if fresh else manifest.identity, resume)
        directory = found or _new(stack, runs_dir, manifest)
        try:
            yield Place(directory, found is not None)
        except InputError:
            # The options turned out to be unusable: discard the directory unless it has a finished stage.
            if found is None and not _has_work(directory):
                discard(directory, made)
            raise


def finish(directory: Path, record: Record) -> None:
    """Write the checksums and, last, the record; then remove files that only an unfinished run needs.

    Raises:
        RecordError: the files cannot be written.
    """
    (directory / ERROR_LOG).unlink(missing_ok=True)
    data = json_bytes(record.dump())
    write_checksums(directory, data)
    write_bytes(directory / RECORD, data)
    shutil.rmtree(directory / CHECKPOINT, ignore_errors=True)


def now() -> str:
    """The current time in the format of manifests."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def stem_of(kind: str, dataset: str, seed: int) -> str:
    """The name of a new run, without the number that makes it unique."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{kind}-{dataset}-s{seed}"


def plain_name(text: str, length: int = 100) -> str:
    """Convert ``text`` to a part of a directory's name, of at most ``length`` bytes."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)
    return plain.encode()[:length].decode(errors="ignore")


def _held(stack: ExitStack, runs_dir: Path, identity: str, resume: Path | None) -> Path | None:
    """The unfinished run to resume, locked; None if there is none."""
    if resume is not None:
        stack.enter_context(hold(resume))
        # The previous holder may have finished it.
        unfinished(resume)
        _tidy(resume)
        return resume
    if not identity or not runs_dir.is_dir():
        return None
    for directory in find_unfinished(runs_dir, identity):
        with contextlib.suppress(RunBusyError):
            stack.enter_context(hold(directory))
            if not (directory / RECORD).exists():
                _tidy(directory)
                return directory
    return None


def _new(stack: ExitStack, runs_dir: Path, manifest: Manifest) -> Path:
    directory = new_run_directory(runs_dir, manifest.id)
    try:
        stack.enter_context(hold(directory))
        write_manifest(directory, manifest.model_copy(update={"id": directory.name}))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory


def _tidy(directory: Path) -> None:
    """Remove the partial files of a killed process."""
    for path in directory.rglob(".*"):
        if temporary_of(path.name) is not None:
            path.unlink(missing_ok=True)


def _has_work(directory: Path) -> bool:
    """Whether a stage of the defense or, in an evaluation, an attack on a block was finished."""
    trained = [*directory.glob(f"{STAGES}/*"), *directory.glob(f"{CHECKPOINT}/trained-*.safetensors")]
    if not trained:
        return any(holds_attack(path) for path in directory.glob(f"{CHECKPOINT}/pieces/*.json"))
    numbers = [path.stem.rpartition("-")[2] for path in trained]
    return any(number.isdecimal() and int(number) > 0 for number in numbers)


def discard(directory: Path, made: list[Path]) -> None:
    """Remove a directory, and those of the directories ``made`` for it that are empty."""
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()
