"""``advbench show`` and ``advbench leaderboard``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.cli.completion import dataset_names, defense_names, model_names
from advbench.cli.echo import echo, warn
from advbench.cli.finding import named_run
from advbench.cli.options import (
    FORMAT,
    PER_CLASS,
    RUN_PATH,
    RUNS_DIRS,
    Format,
    Given,
    option,
    runs_dirs,
    takes,
)

if TYPE_CHECKING:
    from rich.table import Table

    from leaderboards import Result, Row, View


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
    run: Path = RUN_PATH,
    runs_dir: list[Path] | None = RUNS_DIRS,
    per_class: bool | None = PER_CLASS,
    format: Format = FORMAT,
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


def _filter(text: str, **how: Any) -> Any:
    """An option that filters rows."""
    return option(text, unset="all rows", rich_help_panel=FILTERS, **how)


Words = list[str] | None


class BoardOptions(Given):
    """The options of ``advbench leaderboard``."""

    runs_dir: list[Path] | None = RUNS_DIRS
    rank_by: str = option(
        "average, worst-case, unseen, clean, forgetting, backward, forward, gap, or one "
        "attack: robust.autoattack, robust.pgd:eps=0.1.",
        default="average",
    )
    format: BoardFormat = option(
        "table, csv, json, markdown, latex (booktabs) or html (a site).", default=BoardFormat.table
    )
    out: Path | None = option("File to write; for html, a directory.", unset="the terminal")
    dataset: Words = _filter("Only rows on this data set.", autocompletion=dataset_names)
    defense: Words = _filter(
        "Only rows of this defense, or of this evaluated model.", autocompletion=defense_names
    )
    regime: Words = _filter("Only rows of this regime: continual, joint, meta or eval.")
    model: Words = _filter("Only rows of this network.", autocompletion=model_names)
    verdict: Words = _filter("Only rows with this audit verdict: ok, suspect or invalid.")
    sequence: Words = _filter("Only rows of this sequence: fgsm,pgd or fgsm,pgd:eps=0.1.")
    where: Words = _filter("KEY=VALUE: only rows with this value in this column, or params.NAME=VALUE.")
    columns: str = option(
        "Names of columns, separated by commas: rank,label,average,average_interval "
        "or clean_mean,robust.autoattack,params.sigma.",
        default="",
        unset="the standard columns",
        rich_help_panel=SHAPE,
    )
    group_by: str | None = option(
        "A table for each value of this key.", unset="a table for each comparison", rich_help_panel=SHAPE
    )
    pivot: str | None = option(
        "ROWS,COLUMNS,VALUE: defense,sequence,average.", unset="no pivot", rich_help_panel=SHAPE
    )
    reference: Path | None = option(
        "Table of best accuracies (see advbench reference); adds competitiveness ratios.",
        unset="none",
        rich_help_panel=BESIDE,
    )
    reference_attacks: str | None = option(
        "Attacks of it to compare on.", unset="all that it requires", rich_help_panel=BESIDE
    )
    robustbench: Path | None = option(
        "RobustBench's model_info; its rows are shown in separate tables.",
        unset="none",
        rich_help_panel=BESIDE,
    )

    @property
    def shown(self) -> bool:
        """Whether the board is printed as tables."""
        return self.format is BoardFormat.table and self.out is None


@takes(BoardOptions)
def leaderboard(options: BoardOptions) -> None:
    """Rank all runs, averaged over seeds, within each data set, sequence, model and protocol.

    A row's rank is 1 + the number of rows that are better by a paired test on the stored outcomes, so
    rows with equal ranks are ties. A filter hides rows and does not change the ranks of the others.
    """
    from leaderboards import RecordError, View
    from leaderboards.boards.cache import find_all_results

    if options.format is BoardFormat.html and options.out is None:
        raise RecordError("--format html needs --out DIR")
    view = View.of(options.columns, options.group_by, options.pivot)
    published = _published(options)
    places = runs_dirs(options.runs_dir)
    results, problems = find_all_results(places)
    if problems and not results:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecordError(problems[0] + more)
    results, notes = _compared(results, options)
    found = _rows(results, view, options)
    if options.shown:
        _print(found, view, places if not results else [], published)
    elif options.out is None:
        echo(_text(found, options.format, view), nl=False)
    else:
        _write(options.out, found, options.format, view)
    # Printed last, so that a mistake in an option gives only one line.
    for problem in problems:
        warn(f"warning: {problem}")
    for note in notes:
        warn(f"note: {note}")
    for row in found:
        # The board itself has a note about missing outcomes.
        if row.refused in ("weights", "refuted"):
            warn(f"warning: not ranked: {row.note}")


def _published(options: BoardOptions) -> list[Table]:
    """RobustBench's rows as separate tables."""
    if options.robustbench is None:
        return []
    from leaderboards import RecordError
    from leaderboards.peers.robustbench import find_entries
    from leaderboards.peers.robustbench_tables import to_reference_tables

    if not options.shown:
        raise RecordError("--robustbench only prints tables: leave out --format and --out")
    return to_reference_tables(find_entries(options.robustbench, options.dataset))


def _compared(results: Sequence[Result], options: BoardOptions) -> tuple[list[Result], list[str]]:
    """The runs with competitiveness ratios, and why some have none."""
    from leaderboards import RecordError

    names = None if options.reference_attacks is None else options.reference_attacks.split(",")
    if options.reference is None:
        if names is not None:
            raise RecordError("--reference-attacks needs --reference")
        return list(results), []
    from leaderboards.peers.competitiveness import with_competitiveness
    from leaderboards.peers.reference import read_reference

    return with_competitiveness(results, read_reference(options.reference), attacks=names)


def _rows(results: Sequence[Result], view: View, options: BoardOptions) -> list[Row]:
    """The rows that the filters leave."""
    from leaderboards import rows
    from leaderboards.statistics.metrics import METRICS

    # By default a table has only the interval of the ranking key; data and sites have all intervals.
    every = [*METRICS, options.rank_by, *view.under()]
    wanted = every if options.format in DATA else [options.rank_by]
    return rows(
        results,
        options.dataset,
        defense=options.defense,
        regime=options.regime,
        model=options.model,
        verdict=options.verdict,
        sequence=options.sequence,
        where=options.where or (),
        rank_by=options.rank_by,
        intervals=every if options.format is BoardFormat.html else view.intervals(wanted),
        under=view.under(),
    )


def _text(found: Sequence[Row], format: BoardFormat, view: View) -> str:
    """A board as text in the given format, with a newline at its end."""
    from advbench.runtime.console import PLAIN_WIDTH
    from leaderboards import to_csv, to_json, to_latex, to_markdown
    from leaderboards.boards.tables import to_text

    if format is BoardFormat.json:
        return to_json(found, view) + "\n"
    if format is BoardFormat.table:
        return to_text(found, view, width=PLAIN_WIDTH)
    write = {BoardFormat.csv: to_csv, BoardFormat.markdown: to_markdown, BoardFormat.latex: to_latex}
    return write[format](found, view)


def _write(out: Path, found: Sequence[Row], format: BoardFormat, view: View) -> None:
    """Write a board to a file, or a site to a directory."""
    from leaderboards import write_bytes
    from leaderboards.printable import in_line
    from leaderboards.site import write_site

    if format is BoardFormat.html:
        count = write_site(out, found)
        echo(in_line(f"wrote {out / 'index.html'} (rows: {len(found)}, run pages: {count})"))
    else:
        write_bytes(out, _text(found, format, view).encode())
        echo(in_line(f"wrote {out}"))


def _print(found: Sequence[Row], view: View, empty: Sequence[Path], published: Sequence[Table]) -> None:
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
    for table in published:
        console.print(table)
