"""``advbench show`` and ``advbench leaderboard``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a leaderboard is written."""

    table = "table"
    json = "json"
    csv = "csv"


def show(run: Annotated[Path, typer.Argument(help="A run directory or its record.json.")]) -> None:
    """Show a finished run again."""
    from advbench.cli import render
    from advbench.saved import Run
    from leaderboards import read_record

    record = read_record(run)
    render.print_run(Run(run if run.is_dir() else run.parent, record))


def leaderboard(
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    dataset: Annotated[str | None, typer.Option(help="Only runs on this data set.")] = None,
    format: Annotated[Format, typer.Option(help="table, json or csv.")] = Format.table,
    reference: Annotated[
        Path | None,
        typer.Option(help="Best accuracies known, of advbench reference or MultiRobustBench: adds ratios."),
    ] = None,
    reference_attacks: Annotated[
        str | None,
        typer.Option(help="Attacks of the reference to compare on; all that it requires by default."),
    ] = None,
    robustbench: Annotated[
        Path | None, typer.Option(help="RobustBench's model_info: its rows in tables of their own.")
    ] = None,
) -> None:
    """Rank all runs: seeds aggregated, compared only on one data set, sequence, model and protocol."""
    from advbench.cli import references
    from leaderboards import RecordError, find_records, rows, to_csv, to_json, to_table

    records, problems = find_records(runs_dir)
    if problems and not records:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecordError(problems[0] + more)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    published = references.published(robustbench, dataset, tables=format is Format.table)
    records = references.compared(records, reference, reference_attacks)
    found = rows(records, dataset)
    if format is Format.json:
        typer.echo(to_json(found))
    elif format is Format.csv:
        typer.echo(to_csv(found), nl=False)
    else:
        from advbench.cli.render import output

        console = output()
        for table in to_table(found):
            console.print(table)
        if not found:
            console.print(f"no finished runs in {runs_dir}: advbench run makes one")
        for table in published:
            console.print(table)
