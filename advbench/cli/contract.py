"""``advbench attacks``, ``defenses`` and ``datasets``: list, describe or check them, or start one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from advbench.cli import list as lists
from advbench.cli.completion import attack_names, dataset_names, defense_names
from advbench.cli.echo import echo
from advbench.cli.once import DEFAULT, ListsByDefault
from advbench.cli.options import DATA_DIR, FORMAT, Format, argument, option

if TYPE_CHECKING:
    from advbench.contract import Check

NEW = "Write a small package with a working {} and its test; existing files are never overwritten."
CHECK = "Run the contract checks on {} and say which fail and why; exit code 1 if any fails."
DIRECTORY = option("Directory in which to create the package.", default=Path("."))

attacks = typer.Typer(
    cls=ListsByDefault,
    help="List the attacks, describe some (advbench attacks pgd), or draw a sequence (advbench attacks "
    "sample 4 --seed 3); check one, or start one of your own.",
)
attacks.command(
    DEFAULT, help="List the attacks, describe some, or draw a sequence; this is the default command."
)(lists.attacks)
defenses = typer.Typer(
    cls=ListsByDefault,
    help="List the defenses, or describe some (advbench defenses air); check one, or start one of your own.",
)
defenses.command(DEFAULT, help="List the defenses, or describe some; this is the default command.")(
    lists.defenses
)
datasets = typer.Typer(
    cls=ListsByDefault,
    help="List the data sets, or describe some (advbench datasets mnist); check one, or start one of your "
    "own.",
)
datasets.command(DEFAULT, help="List the data sets, or describe some; this is the default command.")(
    lists.datasets
)


@attacks.command("new", help=NEW.format("attack"))
def new_attack(
    name: str = argument("Name of the attack, such as my-attack.", default=...), dir: Path = DIRECTORY
) -> None:
    """Write a package with an attack, and say which files it has."""
    from advbench.contract import write_attack_package

    _say(write_attack_package(name, dir))


@defenses.command("new", help=NEW.format("defense"))
def new_defense(
    name: str = argument("Name of the defense, such as my-defense.", default=...), dir: Path = DIRECTORY
) -> None:
    """Write a package with a defense, and say which files it has."""
    from advbench.contract import write_package

    _say(write_package(name, dir))


@datasets.command("new", help=NEW.format("data set"))
def new_dataset(
    name: str = argument("Name of the data set, such as my-photos.", default=...), dir: Path = DIRECTORY
) -> None:
    """Write a package with a data set, and say which files it has."""
    from advbench.contract import write_dataset_package

    _say(write_dataset_package(name, dir))


@attacks.command("check", help=CHECK.format("an attack"))
def check_attack(
    attack: str = argument(
        "A registered name, or package.module:function.", default=..., autocompletion=attack_names
    ),
    set_: list[str] | None = option("Set a knob: knob=value; repeatable.", "--set", unset="its defaults"),
    format: Format = FORMAT,
) -> None:
    """Check an attack."""
    from advbench import contract
    from advbench.config.plugins import import_attack, names_code
    from attacks_pool import pool

    name = import_attack(attack) if names_code(attack) else pool.entry(attack).info.name
    knobs = _settings(set_)
    _run("attack", name, lambda told: contract.check_attack(name, knobs=knobs, progress=told), format)


@defenses.command("check", help=CHECK.format("a defense"))
def check_defense(
    defense: str = argument(
        "A registered name, or package.module:Class.", default=..., autocompletion=defense_names
    ),
    set_: list[str] | None = option("Set a parameter: key=value; repeatable.", "--set", unset="its defaults"),
    format: Format = FORMAT,
) -> None:
    """Check a defense."""
    from advbench import contract

    kind, given = contract.find_defense(defense), _settings(set_)
    _run(
        "defense",
        kind.info.name,
        lambda told: contract.check_defense(kind, parameters=given, progress=told),
        format,
    )


@datasets.command("check", help=CHECK.format("a data set"))
def check_dataset(
    dataset: str = argument(
        "A name that advbench datasets lists, folder:PATH, npz:PATH, hf:PATH or package.module:factory.",
        default=...,
        autocompletion=dataset_names,
    ),
    data_dir: str | None = DATA_DIR,
    format: Format = FORMAT,
) -> None:
    """Check a data set."""
    from advbench import contract

    _run(
        "dataset",
        dataset,
        lambda told: contract.check_dataset(dataset, data_dir=data_dir, progress=told),
        format,
    )


def _say(files: Sequence[Path]) -> None:
    from leaderboards.printable import in_line

    for path in files:
        echo(in_line(str(path)))


def _settings(given: list[str] | None) -> dict[str, str]:
    """The values of ``--set``, ``["a=1", "b=2"]``, as a dict."""
    from attacks_pool.errors import InputError

    found: dict[str, str] = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"--set takes key=value, not {text!r}")
        found[key.strip()] = value
    return found


def _run(kind: str, name: str, check: Callable[[Callable[[str], None]], list[Check]], format: Format) -> None:
    """Run a contract, print the result of each check, and exit with code 1 if any fails.

    ``check`` runs the contract; it takes a function to call with the name of each check.
    """
    from advbench.runtime.console import errors

    with errors().status(f"checking {name}") as status:
        checks = check(lambda promise: status.update(f"checking {name}: {promise}"))
    holds = all(one.holds for one in checks)
    if format is Format.json:
        report = {kind: name, "holds": holds, "checks": [one.to_json() for one in checks]}
        echo(json.dumps(report, indent=2))
    else:
        _print(name, checks)
    if not holds:
        raise typer.Exit(1)


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
