"""How ``--help`` is laid out: full summaries, options in groups, nothing cut off in a narrow terminal."""

from __future__ import annotations

import re
from typing import Any

NAMED = re.compile(r"\[default: \((.*?)\)(?=;|\])", re.DOTALL)
"""A default that a text names; Typer puts it between parentheses."""


def write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Arguments, then options by the group that they belong to."""
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
    """Each command with the whole first sentence of its help."""
    found = [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]
    records = [(name, _summary(command.help or "")) for name, command in found if not command.hidden]
    if records:
        with formatter.section("Commands"):
            formatter.write_dl(records)


def _summary(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split())
