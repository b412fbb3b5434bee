"""``advbench defenses``: what there is, whether one keeps the contract, and a package to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advbench.cli import list as lists
from advbench.cli.echo import echo
from advbench.cli.once import CheckedGroup
from advbench.cli.options import Format, FormatOption

if TYPE_CHECKING:
    from advbench.contract import Check

DEFAULT = "list"


class _ListsByDefault(CheckedGroup):
    """Words that are no command are the arguments of ``list``: ``advbench defenses air --format json``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListsByDefault,
    help="List the defenses, or describe some (advbench defenses air); check one, or begin one of your own.",
)
app.command(
    DEFAULT, help="List the defenses, or describe some; so does advbench defenses without a command."
)(lists.defenses)


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the defense, such as my-defense.")],
    dir: Annotated[Path, typer.Option(help="Where its directory is made.")] = Path("."),
) -> None:
    """Write a small package with a defense that works and its test; nothing is ever overwritten."""
    from advbench.contract import write_package
    from leaderboards.printable import in_line

    for path in write_package(name, dir):
        echo(in_line(str(path)))


@app.command("check")
def check(
    defense: Annotated[
        str, typer.Argument(help="A registered name, or package.module:Class, installed or below here.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the defense; repeatable.", show_default="the defense's own"),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Run the contract that every defense keeps: what holds, what fails and why; exit code 1 if any fails."""
    from advbench.contract import check_defense, find_defense
    from advbench.runtime.console import errors

    kind, settings = find_defense(defense), dict(_setting(text) for text in set_ or ())
    shown = errors()
    with shown.status(f"checking {kind.info.name}") as status:
        checks = check_defense(
            kind,
            parameters=settings,
            progress=lambda name: status.update(f"checking {kind.info.name}: {name}"),
        )
    if format is Format.json:
        report = {
            "defense": kind.info.name,
            "holds": _all(checks),
            "checks": [one.to_json() for one in checks],
        }
        echo(json.dumps(report, indent=2))
    else:
        _print(kind.info.name, checks)
    if not _all(checks):
        raise typer.Exit(1)


def _all(checks: Sequence[Check]) -> bool:
    return all(one.holds for one in checks)


def _print(name: str, checks: Sequence[Check]) -> None:
    from rich.table import Table

    from advbench.runtime.console import output
    from leaderboards.printable import in_line

    title = in_line(f"The contract: {name}")
    table = Table("promise", "", "what was found", title=title, title_justify="left")
    for one in checks:
        table.add_row(*map(in_line, (one.name, one.status, one.detail)))
    console = output()
    console.print(table)
    failed = [one.name for one in checks if one.status == "fails"]
    seconds = sum(one.seconds for one in checks)
    held = sum(one.holds for one in checks)
    end = f"; it fails: {', '.join(failed)}" if failed else ""
    line = f"{name} keeps {held} of {len(checks)} promises ({seconds:.1f} s){end}"
    console.print(in_line(line), soft_wrap=True)


def _setting(text: str) -> tuple[str, str]:
    from attacks_pool.errors import InputError

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise InputError(f"--set takes key=value, not {text!r}")
    return key.strip(), value
