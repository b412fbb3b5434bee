"""Commands that reject repeated options, and empty paths, which would mean the current folder."""

from __future__ import annotations

import copy
import inspect
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.core import TyperCommand, TyperGroup

from advbench.cli.helptext import write_commands, write_options
from attacks_pool.errors import InputError


class CheckedCommand(TyperCommand):
    """A command that checks its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the arguments, then parse them."""
        _check(self, ctx, list(args))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options section of ``--help``."""
        write_options(self, ctx, formatter)


class CheckedGroup(TyperGroup):
    """A group of commands that checks its own options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the arguments, then parse them."""
        _check(self, ctx, list(args))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options of ``--help``, then the commands."""
        write_options(self, ctx, formatter)
        write_commands(self, ctx, formatter)


DEFAULT = "list"


class ListsByDefault(CheckedGroup):
    """A group that passes words other than commands to ``list``: ``advbench defenses air --format json``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``list`` unless a command is named."""
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


def _check(command: Any, ctx: Any, args: list[str]) -> None:
    """Check the arguments before Typer drops all but the last value of each option.

    Raises:
        InputError: a single-valued option is given twice, or a path is empty.
    """
    if ctx.resilient_parsing:
        # Shell completion parses incomplete lines.
        return
    for param, values in _given(command, ctx, args):
        name = param.opts[0] if param.param_type_name == "option" else param.name.upper()
        if len(values) > 1 and not _repeats(param):
            said = "" if param.is_flag else f" ({' and '.join(map(reprlib.repr, values[:2]))})"
            raise InputError(f"{name} is given twice{said}: it takes one value")
        if "" in values and param.name in _paths(command):
            raise InputError(f"{name} is empty: name a file or folder, . for the current folder")


def _given(command: Any, ctx: Any, args: list[str]) -> Iterator[tuple[Any, list[Any]]]:
    """Each given parameter with all of its values in order; flags have booleans."""
    parser = command.make_parser(ctx)
    params = {param.name: param for param in command.get_params(ctx)}
    for param in params.values():
        if param.param_type_name == "option" and not _repeats(param):
            # Register the option again as repeatable, so that the parser keeps every value.
            every = copy.copy(param)
            every.multiple = True
            every.add_to_parser(parser, ctx)
    values, _, order = parser.parse_args(args=args)
    for name in dict.fromkeys(param.name for param in order):
        found = values.get(name)
        yield params[name], list(found) if isinstance(found, list | tuple) else [found]


def _repeats(param: Any) -> bool:
    return bool(param.param_type_name == "argument" or param.multiple or param.is_eager)


def _paths(command: Any) -> set[str]:
    """Names of the parameters that are files or folders, by type or by the suffix ``_dir``."""
    hints = get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    return {name for name, hint in hints.items() if name.endswith("_dir") or Path in _parts(hint)}


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)
