"""The ``advbench`` command: its sub-commands, and user errors as one line and exit code 2."""

from __future__ import annotations

import difflib
import errno
import functools
import os
import re
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from advbench.cli import (
    audit,
    certify,
    contract,
    doctor,
    export,
    leaderboard,
    plot,
    reference,
    run,
    runs,
    sweep,
    verify,
)
from advbench.cli import eval as evaluating
from advbench.cli import list as lists
from advbench.cli.echo import echo, guard, warn
from advbench.cli.once import CheckedCommand, CheckedGroup
from advbench.cli.processes import in_processes
from advbench.runtime.interrupts import Interrupted
from advbench.runtime.launch import launched
from advbench.runtime.version import __version__

LONGEST = 900
"""Most characters of an error's line."""
INTERRUPTED = 130
"""The shell's exit code for a process stopped by Ctrl-C."""

app = typer.Typer(
    name="advbench",
    cls=CheckedGroup,
    help="A robustness benchmark for adversarial defenses.",
    no_args_is_help=True,
    # Rich truncates names at 80 columns, and is slow to import.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "eval": evaluating.evaluate,
    "sweep": sweep.sweep,
    "show": leaderboard.show,
    "leaderboard": leaderboard.leaderboard,
    "reference": reference.reference,
    "export": export.export,
    "plot": plot.plot,
    "audit": audit.audit,
    "certify": certify.certify,
    "verify": verify.verify,
    "submit": verify.submit,
    "accept": verify.accept,
    "models": lists.models,
    "presets": lists.presets,
    "doctor": doctor.doctor,
}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)
app.add_typer(contract.attacks, name="attacks")
app.add_typer(contract.datasets, name="datasets")
app.add_typer(contract.defenses, name="defenses")
app.add_typer(runs.app, name="runs", cls=CheckedGroup)
for _app in (app, contract.attacks, contract.datasets, contract.defenses, runs.app):
    for _command in _app.registered_commands:
        _command.cls = CheckedCommand


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"advbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """A robustness benchmark for adversarial defenses."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    guard()
    given = list(sys.argv[1:] if arguments is None else arguments)
    launch = launched()
    sys.exit(invoke(given) if launch is None else in_processes(given, outcome, launch))


@functools.cache
def _command_line() -> Any:
    """All commands, built once per process because building is slow."""
    return typer.main.get_command(app)


def invoke(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        0 on success; 2 after a user error, with one line on stderr; 1 if a run failed; 130 after an
        interrupt, 143 after a termination.
    """
    line, code = outcome(arguments)
    if line is not None:
        warn(line)
    return code


def outcome(arguments: list[str]) -> tuple[str | None, int]:
    """Run the command line; return the line to write to stderr, if there is one, and the exit code."""
    try:
        code = _command_line().main(args=arguments, prog_name="advbench", standalone_mode=False)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except Interrupted as stop:
        return _failed(f"interrupted; {stop.how}" if stop.how else "interrupted", stop.code)
    except BrokenPipeError:
        # The reader of our output has exited; keep Python from flushing to it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None, 0
    except Exception as error:
        if type(error).__name__ == "Abort":
            return _failed("interrupted", INTERRUPTED)
        if type(error).__name__ == "NoArgsIsHelpError":
            echo(str(error), err=True)
            return None, 2
        message, exit_code = _explain(error)
        if message is None:
            raise
        return _failed(message, exit_code)
    # Some versions of Typer return this exit code after an interrupt.
    return _failed("interrupted", INTERRUPTED) if code == INTERRUPTED else (None, int(code or 0))


def _explain(error: Exception) -> tuple[str | None, int]:
    """The message and exit code of a user error or a failed run; None for a bug of ours."""
    # Some versions of Typer bundle click, so recognise its errors by an attribute, not by class.
    if hasattr(error, "format_message"):
        return _with_given(str(error.format_message()), error.__cause__), 2
    if {"InputError", "RecordError"} & {base.__name__ for base in type(error).__mro__}:
        return str(error), 2
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{reprlib.repr(error.filename)}: {os.strerror(error.errno)}", 2
    if type(error).__name__ in ("TrainingDivergedError", "RunFailedError"):
        return str(error), 1
    return None, 1


def _with_given(message: str, cause: BaseException | None) -> str:
    """Add the given value and the nearest choice to Typer's message for an option."""
    from pydantic import ValidationError

    if isinstance(cause, ValidationError):
        fault = cause.errors()[0]
        plain, given = fault["msg"].removeprefix("Value error, "), reprlib.repr(fault["input"])
        said = given in plain or " is not one of " in plain
        message = message.replace(fault["msg"], plain if said else f"{plain} (given {given})")
    before, choosing, choices = message.partition("' is not one of ")
    if choosing:
        given = before.rpartition("'")[2]
        near = difflib.get_close_matches(given.lower(), re.findall("'([^']*)'", choices), n=1, cutoff=0.5)
        message += f" Did you mean {near[0]!r}?" if near else ""
    return message


def _failed(message: str, code: int) -> tuple[str, int]:
    line = " ".join(message.split())
    if len(line) > LONGEST:
        # The middle repeats the user's input; the beginning and the end say what is wrong.
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    return f"error: {line}", code


if __name__ == "__main__":
    main()
