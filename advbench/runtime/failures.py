"""Errors of a run that fails before its end: one line, with finished work kept."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from advbench.runtime.interrupts import Interrupted
from advbench.runtime.launch import launched
from advbench.runtime.timeouts import AttackTimeoutError
from attacks_pool.errors import InputError
from defenses import TrainingDivergedError
from leaderboards import RecordError
from leaderboards.records.layout import RECORD

ERROR_LOG = "error.log"


class RunFailedError(RuntimeError):
    """A run failed before its end; one line says where, why, and how to resume it.

    Attributes:
        what: the line without the part about kept work and resuming.
    """

    def __init__(self, what: str, kept: str = "") -> None:
        super().__init__(f"{what}{kept}")
        self.what = what


@contextmanager
def failing(directory: Path, place: Callable[[], str], how: str) -> Iterator[None]:
    """Turn errors within the block into one line; the traceback goes to ``error.log``.

    Args:
        directory: the run's directory.
        place: returns the current stage of the run, in words.
        how: how to resume, in words.

    Raises:
        Interrupted: an interrupt, with a text on how to resume.
        RunFailedError: any other error, except mistakes of the user.
        TrainingDivergedError: the loss is not finite any more.
    """
    try:
        yield
    except (InputError, RunFailedError):
        raise
    except Interrupted as stop:
        # The record is written last: if it exists, the run is complete, even if events are missing.
        stop.how = f"run {directory.name} is complete" if (directory / RECORD).exists() else how
        raise
    except TrainingDivergedError as error:
        raise TrainingDivergedError(f"{error}; the last good state is kept in {directory}") from error
    except (AttackTimeoutError, RecordError, OSError) as error:
        raise RunFailedError(f"{place()}: {_line(error)}", f"; finished work is kept, {how}") from error
    except Exception as error:
        raised = f"{place()}: {type(error).__name__}: {_line(error)}"
        with contextlib.suppress(OSError):
            (directory / ERROR_LOG).write_text(traceback.format_exc(), encoding="utf-8")
        kept = f" (its traceback is in {directory / ERROR_LOG}); finished work is kept, {how}"
        raise RunFailedError(raised, kept) from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def resume_command(directory: Path) -> str:
    """The command that resumes a run, in words."""
    if launched() is not None:
        # It resumes only with the same number of processes, whoever started them.
        return "the same command resumes it"
    return f"resume with: advbench run --resume {directory}"
