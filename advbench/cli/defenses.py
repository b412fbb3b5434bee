"""``advbench defenses``: list, describe or check defenses, and write a package to start from."""

from __future__ import annotations

from pathlib import Path

import typer

from advbench.cli import list as lists
from advbench.cli.completion import defense_names
from advbench.cli.contract import run_checks, settings
from advbench.cli.echo import echo
from advbench.cli.once import DEFAULT, ListsByDefault
from advbench.cli.options import FORMAT, Format, argument, option

app = typer.Typer(
    cls=ListsByDefault,
    help="List the defenses, or describe some (advbench defenses air); check one, or start one of your own.",
)
app.command(DEFAULT, help="List the defenses, or describe some; this is the default command.")(lists.defenses)


@app.command("new")
def new(
    name: str = argument("Name of the defense, such as my-defense.", default=...),
    dir: Path = option("Directory in which to create the package.", default=Path(".")),
) -> None:
    """Write a small package with a working defense and its test; existing files are never overwritten."""
    from advbench.contract import write_package
    from leaderboards.printable import in_line

    for path in write_package(name, dir):
        echo(in_line(str(path)))


@app.command("check")
def check(
    defense: str = argument(
        "A registered name, or package.module:Class.", default=..., autocompletion=defense_names
    ),
    set_: list[str] | None = option("Set a parameter: key=value; repeatable.", "--set", unset="its defaults"),
    format: Format = FORMAT,
) -> None:
    """Run the contract checks on a defense and say which fail and why; exit code 1 if any fails."""
    from advbench.contract import check_defense, find_defense

    kind, parameters = find_defense(defense), settings(set_)
    run_checks(
        "defense",
        kind.info.name,
        lambda told: check_defense(kind, parameters=parameters, progress=told),
        format,
    )
