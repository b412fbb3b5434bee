"""``advbench show`` and ``advbench leaderboard``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leaderboards import Record, Row


class Format(StrEnum):
    """How a leaderboard is written."""

    table = "table"
    json = "json"
    csv = "csv"
    html = "html"


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
    format: Annotated[Format, typer.Option(help="table, json, csv or html.")] = Format.table,
    out: Annotated[
        Path | None, typer.Option(help="The directory of the static site that --format html writes.")
    ] = None,
) -> None:
    """Rank all runs: seeds aggregated, compared only on one data set, sequence, model and protocol."""
    from leaderboards import RecordError, find_records, rows, to_csv, to_json, to_table

    if (out is None) == (format is Format.html):
        raise RecordError("--format html needs --out DIR, and --out goes with no other format")
    records, problems = find_records(runs_dir)
    if problems and not records:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecordError(problems[0] + more)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    found = rows(records, dataset)
    if format is Format.html:
        _write_site(out, found, records, runs_dir)
    elif format is Format.json:
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


def _write_site(out: Path | None, found: list[Row], records: list[Record], runs_dir: Path) -> None:
    from leaderboards.errors import RecordError
    from leaderboards.site import write_site

    if out is None:
        raise RecordError("--format html needs --out DIR")
    count = write_site(out, found, records, runs_dir)
    typer.echo(f"wrote {out / 'index.html'} (rows: {len(found)}, run pages: {count})")
