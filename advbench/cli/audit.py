"""``advbench audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.echo import echo
from advbench.cli.options import Format, FormatOption, RunPath


def audit(
    run: RunPath,
    surrogate: Annotated[
        Path | None,
        typer.Option(help="A run whose final model transferred points are crafted on; row 0's by default."),
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Test points that probes attack.")] = 200,
    data_dir: Annotated[str | None, typer.Option(help="Where the data set's files are.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import a model factory that a record names.")
    ] = False,
    format: FormatOption = Format.table,
) -> None:
    """Look for false robustness in a finished run again, on its saved weights; exit 1 unless it is ok."""
    from advbench.audit.stored import audit_run
    from advbench.runs.saved import load_run

    saved = load_run(run, trust=trust, data_dir=data_dir)
    other = load_run(surrogate, trust=trust, data_dir=data_dir) if surrogate is not None else None
    found = audit_run(saved, surrogate=other, points=points)
    if format is Format.json:
        echo(found.model_dump_json(indent=1))
    else:
        from advbench.cli import tables as render
        from advbench.cli.tables import flag_lines, probe_table
        from leaderboards.printable import in_line

        console = render.output()
        if found.probes:
            console.print(probe_table(found))
        for line in flag_lines(found):
            console.print(in_line(line), soft_wrap=True)
    if found.verdict != "ok":
        raise typer.Exit(1)
