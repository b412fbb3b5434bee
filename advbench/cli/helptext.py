"""Layout of ``--help``: full summaries, grouped options, no truncation in narrow terminals."""

from __future__ import annotations

import re
from typing import Any

NAMED = re.compile(r"\[default: \((.*?)\)(?=;|\])", re.DOTALL)
"""A default described in words; Typer puts it in parentheses."""


def write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the arguments, then the options by group."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            usual = "Arguments" if param.param_type_name == "argument" else "Options"
            section = getattr(param, "rich_help_panel", None) or usual
            name, said = record
            sections.setdefault(section, []).append((name, NAMED.sub(r"[default: \1", said)))
    for section, records in sections.items():
        with formatter.section(section):
            formatter.write_dl(records)


def write_commands(group: Any, ctx: Any, formatter: Any) -> None:
    """Write each command with the first paragraph of its help."""
    found = [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]
    records = [(name, _summary(command.help or "")) for name, command in found if not command.hidden]
    if records:
        with formatter.section("Commands"):
            formatter.write_dl(records)


def _summary(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split())
