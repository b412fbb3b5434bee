"""``advbench attacks``: list, describe or check attacks, and write a package to start from."""

from __future__ import annotations

from pathlib import Path

import typer

from advbench.cli import list as lists
from advbench.cli.completion import attack_names
from advbench.cli.contract import run_checks, settings
from advbench.cli.echo import echo
from advbench.cli.once import DEFAULT, ListsByDefault
from advbench.cli.options import FORMAT, Format, argument, option

app = typer.Typer(
    cls=ListsByDefault,
    help="List the attacks, describe some (advbench attacks pgd), or draw a sequence (advbench attacks "
    "sample 4 --seed 3); check one, or start one of your own.",
)
app.command(
    DEFAULT,
    help="List the attacks, describe some, or draw a sequence; this is the default command.",
)(lists.attacks)


@app.command("new")
def new(
    name: str = argument("Name of the attack, such as my-attack.", default=...),
    dir: Path = option("Directory in which to create the package.", default=Path(".")),
) -> None:
    """Write a small package with a working attack and its test; existing files are never overwritten."""
    from advbench.contract import write_attack_package
    from leaderboards.printable import in_line

    for path in write_attack_package(name, dir):
        echo(in_line(str(path)))


@app.command("check")
def check(
    attack: str = argument(
        "A registered name, or package.module:function.", default=..., autocompletion=attack_names
    ),
    set_: list[str] | None = option("Set a knob: knob=value; repeatable.", "--set", unset="its defaults"),
    format: Format = FORMAT,
) -> None:
    """Run the contract checks on an attack and say which fail and why; exit code 1 if any fails."""
    from advbench.config.plugins import import_attack, names_code
    from advbench.contract import check_attack
    from attacks_pool import pool

    name = import_attack(attack) if names_code(attack) else pool.entry(attack).info.name
    knobs = settings(set_)
    run_checks("attack", name, lambda told: check_attack(name, knobs=knobs, progress=told), format)
