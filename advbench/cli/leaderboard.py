"""``advbench show`` and ``advbench leaderboard``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench.cli.echo import echo, warn
from advbench.cli.finding import named_run
from advbench.cli.options import Format, FormatOption, PerClass, RunPath, RunsDirs, runs_dirs

if TYPE_CHECKING:
    from leaderboards import Row, View
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from leaderboards import Result


def compared_with(
    results: Sequence[Result], reference: Path | None, attacks: str | None
) -> tuple[list[Result], list[str]]:
    """Add competitiveness ratios to runs, and explain why some have none.

    Args:
        results: finished runs.
        reference: the reference table; None adds nothing.
        attacks: the attacks of the table to average over, separated by commas.

    Raises:
        RecordError: the table cannot be read, lacks one of ``attacks``, or is missing.
    """
    from leaderboards import RecordError

    names = None if attacks is None else attacks.split(",")
    if reference is None:
        if names is not None:
            raise RecordError("--reference-attacks needs --reference")
        return list(results), []
    from leaderboards.peers.competitiveness import with_competitiveness
    from leaderboards.peers.reference import read_reference

    return with_competitiveness(results, read_reference(reference), attacks=names)


def published_tables(folder: Path | None, datasets: Sequence[str] | None, *, tables: bool) -> list[Table]:
    """Read RobustBench's rows as separate tables.

    Args:
        folder: its ``model_info``, or a folder in it; None for no tables.
        datasets: only these data sets.
        tables: whether the output is tables.

    Raises:
        RecordError: the folder cannot be read, or the output is not tables.
    """
    if folder is None:
        return []
    from leaderboards import RecordError
    from leaderboards.peers.robustbench import find_entries
    from leaderboards.peers.robustbench_tables import to_reference_tables

    if not tables:
        raise RecordError("--robustbench only prints tables: leave out --format and --out")
    return to_reference_tables(find_entries(folder, datasets))


def print_reference_tables(tables: Sequence[Table]) -> None:
    """Print tables of published rows."""
    from advbench.runtime.console import output

    for table in tables:
        output().print(table)


class BoardFormat(StrEnum):
    """Output formats of a leaderboard."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"
    html = "html"


DATA = (BoardFormat.csv, BoardFormat.json)
FILTERS = "Filter rows (repeat an option to allow several values)"
SHAPE = "Choose columns"
BESIDE = "Compare with"


def show(
    run: RunPath,
    runs_dir: RunsDirs = None,
    per_class: PerClass = None,
    format: FormatOption = Format.table,
) -> None:
    """Show the result of a finished run; --format json prints its record."""
    from advbench.cli import results
    from advbench.runs.saved import Run
    from leaderboards import read_record

    path = named_run(run, runs_dir)
    record = read_record(path)
    if format is Format.json:
        results.write_json([record], several=False)
    else:
        results.print_run(Run(path if path.is_dir() else path.parent, record), per_class=per_class)


def _filter(text: str) -> typer.models.OptionInfo:
    """An option that filters rows."""
    found: typer.models.OptionInfo = typer.Option(help=text, rich_help_panel=FILTERS, show_default="all rows")
    return found


Words = list[str] | None


def leaderboard(
    runs_dir: RunsDirs = None,
    rank_by: Annotated[
        str,
        typer.Option(
            help="average, worst-case, unseen, clean, forgetting, backward, forward, gap, or one "
            "attack: robust.autoattack, robust.pgd:eps=0.1."
        ),
    ] = "average",
    format: Annotated[
        BoardFormat, typer.Option(help="table, csv, json, markdown, latex (booktabs) or html (a site).")
    ] = BoardFormat.table,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; for html, a directory.",
            show_default="the terminal",
        ),
    ] = None,
    dataset: Annotated[Words, _filter("Only rows on this data set.")] = None,
    defense: Annotated[Words, _filter("Only rows of this defense, or of this evaluated model.")] = None,
    regime: Annotated[Words, _filter("Only rows of this regime: continual, joint, meta or eval.")] = None,
    model: Annotated[Words, _filter("Only rows of this network.")] = None,
    verdict: Annotated[Words, _filter("Only rows with this audit verdict: ok, suspect or invalid.")] = None,
    sequence: Annotated[Words, _filter("Only rows of this sequence: fgsm,pgd or fgsm,pgd:eps=0.1.")] = None,
    where: Annotated[
        Words, _filter("KEY=VALUE: only rows with this value in this column, or params.NAME=VALUE.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            help="Names of columns, separated by commas: rank,label,average,average_interval "
            "or clean_mean,robust.autoattack,params.sigma.",
            rich_help_panel=SHAPE,
            show_default="the standard columns",
        ),
    ] = "",
    group_by: Annotated[
        str | None,
        typer.Option(
            help="A table for each value of this key.",
            rich_help_panel=SHAPE,
            show_default="a table for each comparison",
        ),
    ] = None,
    pivot: Annotated[
        str | None,
        typer.Option(
            help="ROWS,COLUMNS,VALUE: defense,sequence,average.",
            rich_help_panel=SHAPE,
            show_default="no pivot",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Table of best accuracies (see advbench reference); adds competitiveness ratios.",
            rich_help_panel=BESIDE,
            show_default="none",
        ),
    ] = None,
    reference_attacks: Annotated[
        str | None,
        typer.Option(
            help="Attacks of it to compare on.", rich_help_panel=BESIDE, show_default="all that it requires"
        ),
    ] = None,
    robustbench: Annotated[
        Path | None,
        typer.Option(
            help="RobustBench's model_info; its rows are shown in separate tables.",
            rich_help_panel=BESIDE,
            show_default="none",
        ),
    ] = None,
) -> None:
    """Rank all runs, averaged over seeds, within each data set, sequence, model and protocol.

    A row's rank is 1 + the number of rows that are better by a paired test on the stored outcomes, so
    rows with equal ranks are ties. A filter hides rows and does not change the ranks of the others.
    """
    from leaderboards import RecordError, View, rows
    from leaderboards.boards.cache import find_all_results
    from leaderboards.statistics.metrics import METRICS

    if format is BoardFormat.html and out is None:
        raise RecordError("--format html needs --out DIR")
    view = View.of(columns, group_by, pivot)
    published = published_tables(robustbench, dataset, tables=format is BoardFormat.table and out is None)
    places = runs_dirs(runs_dir)
    results, problems = find_all_results(places)
    if problems and not results:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecordError(problems[0] + more)
    results, notes = compared_with(results, reference, reference_attacks)
    every = [*METRICS, rank_by, *view.under()]
    found = rows(
        results,
        dataset,
        defense=defense,
        regime=regime,
        model=model,
        verdict=verdict,
        sequence=sequence,
        where=where or (),
        rank_by=rank_by,
        # By default a table has only the interval of the ranking key; data and sites have all intervals.
        intervals=every
        if format is BoardFormat.html
        else view.intervals(every if format in DATA else [rank_by]),
        under=view.under(),
    )
    if format is BoardFormat.html and out is not None:
        _write_site(out, found)
    elif format is BoardFormat.table and out is None:
        _print(found, view, places if not results else [])
        print_reference_tables(published)
    else:
        text = _text(found, format, view)
        if out is None:
            echo(text, nl=False)
        else:
            _save(out, text)
    # Printed last, so that a mistake in an option gives only one line.
    for problem in problems:
        warn(f"warning: {problem}")
    for note in notes:
        warn(f"note: {note}")
    for row in found:
        # The board itself has a note about missing outcomes.
        if row.refused in ("weights", "refuted"):
            warn(f"warning: not ranked: {row.note}")


def _text(found: Sequence[Row], format: BoardFormat, view: View) -> str:
    """A board as text in the given format, with a newline at its end."""
    from leaderboards import to_csv, to_json, to_latex, to_markdown

    if format is BoardFormat.json:
        return to_json(found, view) + "\n"
    if format is BoardFormat.csv:
        return to_csv(found, view)
    if format is BoardFormat.markdown:
        return to_markdown(found, view)
    if format is BoardFormat.latex:
        return to_latex(found, view)
    from advbench.runtime.console import PLAIN_WIDTH
    from leaderboards.boards.tables import to_text

    return to_text(found, view, width=PLAIN_WIDTH)


def _save(path: Path, text: str) -> None:
    from leaderboards import write_bytes
    from leaderboards.printable import in_line

    write_bytes(path, text.encode())
    echo(in_line(f"wrote {path}"))


def _print(found: Sequence[Row], view: View, empty: Sequence[Path]) -> None:
    from advbench.runtime.console import COMPACT, output
    from leaderboards import to_table
    from leaderboards.printable import in_line

    console = output()
    for table in to_table(found, view, compact=console.width < COMPACT):
        console.print(table)
    if empty:
        console.print(in_line(f"no finished runs in {' or '.join(map(str, empty))}: advbench run makes one"))
    elif not found:
        console.print("no row matches the filters")
    elif not (view.columns or view.pivot):
        console.print(
            "ranked by the first number: mean ± standard deviation over seeds, 95 % interval over seeds and "
            "test points; equal ranks are ties (paired test, p < 0.05)"
        )


def _write_site(out: Path, found: Sequence[Row]) -> None:
    from leaderboards.printable import in_line
    from leaderboards.site import write_site

    count = write_site(out, found)
    echo(in_line(f"wrote {out / 'index.html'} (rows: {len(found)}, run pages: {count})"))
