"""Output of ``advbench defenses check`` and ``advbench attacks check``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from advbench.cli.echo import echo
from advbench.cli.options import Format

if TYPE_CHECKING:
    from advbench.contract import Check


def run_checks(
    kind: str, name: str, check: Callable[[Callable[[str], None]], list[Check]], format: Format
) -> None:
    """Run a contract, print the result of each check, and exit with code 1 if any fails.

    Args:
        kind: ``defense`` or ``attack``.
        name: the name of the defense or attack.
        check: runs the contract; it takes a function to call with the name of each check.
        format: table or JSON.
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


def settings(given: list[str] | None) -> dict[str, str]:
    """The values of ``--set``, ``["a=1", "b=2"]``, as a dict.

    Raises:
        InputError: a value is not of the form key=value.
    """
    from attacks_pool.errors import InputError

    found: dict[str, str] = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"--set takes key=value, not {text!r}")
        found[key.strip()] = value
    return found


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
