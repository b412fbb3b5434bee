"""``advbench doctor``: what works here, what does not, and the command that mends it."""

from __future__ import annotations

import json

import typer

from advbench.cli.echoing import echo
from advbench.cli.lists import Format, FormatOption


def doctor(format: FormatOption = Format.table) -> None:
    """Say which libraries load here and why others do not; exit code 1 where advbench cannot run."""
    from advbench.doctor import examine, works

    checks = examine()
    if format is Format.json:
        report = {"works": works(checks), "checks": [check.to_json() for check in checks]}
        echo(json.dumps(report, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            echo(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
            if check.mend:
                echo(f"{'':<8} {'':<{width}}  {check.mend}")
    if not works(checks):
        raise typer.Exit(1)
