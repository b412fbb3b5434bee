"""The classes of all commands: they reject repeated options and empty paths, and lay out ``--help``."""

from __future__ import annotations

import copy
import inspect
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typer.core import TyperCommand, TyperGroup

from attacks_pool.errors import InputError

NAMED = re.compile(r"\[default: \((.*?)\)(?=;|\])", re.DOTALL)
"""A default described in words; Typer puts it in parentheses."""
DEFAULT = "list"


class _Checked:
    """What commands and groups have in common."""

    def parse_args(self: Any, ctx: Any, args: list[str]) -> list[str]:
        """Check the arguments, then parse them; for shell completion only parse them."""
        if ctx.resilient_parsing:
            return _parse(self, ctx, args)
        _check(self, ctx, list(args))
        above: Any = super()
        rest: list[str] = above.parse_args(ctx, args)
        return rest

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if param.param_type_name == "argument" else "Options"
                section = getattr(param, "rich_help_panel", None) or usual
                sections.setdefault(section, []).append((record[0], NAMED.sub(r"[default: \1", record[1])))
        _write(sections, formatter)


class CheckedCommand(_Checked, TyperCommand):
    """A command that checks its options."""


class CheckedGroup(_Checked, TyperGroup):
    """A group of commands that checks its own options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then each command with the first paragraph of its help."""
        super().format_options(ctx, formatter)
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        shown = [(name, command.help or "") for name, command in found if command and not command.hidden]
        records = [(name, " ".join(said.partition("\n\n")[0].split())) for name, said in shown]
        _write({"Commands": records}, formatter)


class ListsByDefault(CheckedGroup):
    """A group that passes words other than commands to ``list``: ``advbench defenses air --format json``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``list`` unless a command is named; shell completion offers the commands."""
        named = args and args[0] in {*self.commands, *ctx.help_option_names}
        if not named and not ctx.resilient_parsing:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


def _write(sections: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    for section, records in sections.items():
        with formatter.section(section):
            formatter.write_dl(records)


def _parse(command: Any, ctx: Any, args: list[str]) -> list[str]:
    """Parse without converting values: shell completion does not need them, and converting loads pydantic."""
    parser = command.make_parser(ctx)
    given, rest, _ = parser.parse_args(args=args)
    for param in command.get_params(ctx):
        ctx.params[param.name], source = param.consume_value(ctx, given)
        ctx.set_parameter_source(param.name, source)
    ctx._opt_prefixes.update(parser._opt_prefixes)
    words = 1 if isinstance(command, TyperGroup) else 0
    ctx._protected_args, ctx.args = rest[:words], rest[words:]
    return list(rest[words:])


def _check(command: Any, ctx: Any, args: list[str]) -> None:
    """Check the arguments before Typer drops all but the last value of each option.

    Raises:
        InputError: a single-valued option is given twice, or a path is empty.
    """
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
    declared = inspect.signature(command.callback, eval_str=True).parameters if command.callback else {}
    return {
        name for name, param in declared.items() if name.endswith("_dir") or Path in _parts(param.annotation)
    }


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)
