"""Leaderboards as terminal tables, JSON, CSV, Markdown and data frames (for LaTeX see `latex`)."""

import csv
import io
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.boards.cache import find_all_results
from leaderboards.boards.columns import AUDIT, LABEL, column_of, data_columns
from leaderboards.boards.labels import audit, labels
from leaderboards.boards.query import Texts
from leaderboards.boards.ranking import rows
from leaderboards.boards.row import Row
from leaderboards.boards.sheets import Sheet, View, pivoted, sheets
from leaderboards.boards.values import cell, extra_columns, scalar, standard_columns
from leaderboards.printable import in_cell, in_line, printable
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.summary import Summary

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


def data(rows: Sequence[Row], view: View | None = None) -> tuple[list[str], list[list[Any]]]:
    """The names and values of a board as data, at full precision.

    The default columns are those of `flat`. A metric among chosen columns gives its mean, standard deviation
    and both ends of its interval; in a pivot, its mean. A group key is the first column, and sorts the rows.

    Raises:
        RecordError: see `sheets`.
    """
    view = view or View()
    if view.pivot is not None:
        if not rows:
            return [], []
        sheet = pivoted(rows, view.pivot)
        return [column.name for column in sheet.columns], [list(map(_number, line)) for line in sheet.rows]
    names = [*standard_columns(), *extra_columns(rows)]
    if view.columns:
        names = data_columns(view.columns, rows)
    ordered = list(enumerate(rows))
    if view.group_by is not None:
        column = column_of(view.group_by, rows)
        key = f"{column.metric}_mean" if column.kind == "spread" else column.name
        names = list(dict.fromkeys([key, *names]))
        first: dict[str, int] = {}
        for index, row in ordered:
            first.setdefault(repr(cell(row, key)), index)
        ordered.sort(key=lambda pair: (first[repr(cell(pair[1], key))], pair[0]))
    named = labels(rows)
    return names, [[_value(row, name, named[index]) for name in names] for index, row in ordered]


def _value(row: Row, name: str, label: str) -> Any:
    if name in (LABEL, AUDIT):
        return label if name == LABEL else audit(row)
    return scalar(cell(row, name))


def _number(value: Any) -> Any:
    return value.mean if isinstance(value, Summary) else scalar(value)


def to_json(rows: Iterable[Row], view: View | None = None) -> str:
    """Rows as a JSON list of objects, at full precision.

    By default an object has all fields of a row, with metrics as ``{mean, std, n, low, high}`` or null; with
    a `View` it has the columns of `data`.
    """
    rows = list(rows)
    if view is None or view == View():
        found = [_tree(row) for row in rows]
    else:
        names, values = data(rows, view)
        found = [dict(zip(names, line, strict=True)) for line in values]
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)


def _tree(row: Row) -> dict[str, Any]:
    # The paths of the runs concern only this machine.
    tree = {one.name: getattr(row, one.name) for one in fields(row) if one.name != "directories"}
    for name in ("metrics", "cost"):
        tree[name] = {key: None if one is None else vars(one) for key, one in tree[name].items()}
    return tree


def to_csv(rows: Iterable[Row], view: View | None = None) -> str:
    """Rows as CSV, at full precision, with the columns of `data`; an undefined value is empty.

    A text that a spreadsheet would evaluate, because it begins with ``=``, ``+``, ``-``, ``@``, a tab or a
    newline, gets a leading single quote. Numbers are unchanged.
    """
    names, values = data(list(rows), view)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in (names, *values):
        writer.writerow([in_cell(value) if isinstance(value, str) else value for value in line])
    return buffer.getvalue()


def load(
    runs_dir: str | Path,
    *more: str | Path,
    columns: str | Iterable[str] = (),
    group_by: str | None = None,
    pivot: str | None = None,
    dataset: Texts = None,
    defense: Texts = None,
    regime: Texts = None,
    model: Texts = None,
    verdict: Texts = None,
    sequence: Texts = None,
    where: str | Iterable[str] = (),
    rank_by: str = "average",
) -> "pd.DataFrame":
    """The ranked rows of all runs in one or more directories as a data frame, with the columns of `data`.

    A record that cannot be read gives a warning. The options are those of ``advbench leaderboard``: the
    columns, a key to group by, a pivot ``ROWS,COLUMNS,VALUE``, filters (see `rows`) and the metric to rank
    by.

    Raises:
        RecordError: there is no such directory, or an option has an unknown value.
    """
    import pandas as pd

    view = View.of(columns, group_by, pivot)
    results, problems = find_all_results(map(Path, (runs_dir, *more)))
    for problem in problems:
        warnings.warn(in_line(problem), stacklevel=2)
    found = rows(
        results,
        dataset,
        defense=defense,
        regime=regime,
        model=model,
        verdict=verdict,
        sequence=sequence,
        where=[where] if isinstance(where, str) else where,
        rank_by=rank_by,
        intervals=view.intervals([*METRICS, rank_by]),
        under=view.under(),
    )
    names, values = data(found, view)
    return pd.DataFrame(values, columns=names)


def to_table(rows: Iterable[Row], view: View | None = None, *, compact: bool = False) -> "list[Table]":
    """One table for each sheet (see `sheets`), in percent, mean ± standard deviation over seeds.

    The best value of a metric is bold, the second underlined. A ``compact`` table fits 100 characters: it
    shows only the mean of every metric except the ranking key.
    """
    from leaderboards.boards.terminal import SheetTable

    return [SheetTable(sheet) for sheet in sheets(list(rows), view, compact=compact)]


def to_text(rows: Iterable[Row], view: View | None = None, *, width: int = 200) -> str:
    """The tables of `to_table` as plain text."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, record=True
    )
    for table in to_table(rows, view):
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


def to_markdown(rows: Iterable[Row], view: View | None = None) -> str:
    """Tables as Markdown (pipe tables under headings); the best value bold, the second underlined."""
    found = []
    for sheet in sheets(list(rows), view):
        lines = [f"### {_plain(sheet.title)}", ""]
        lines.append(_line(_plain(column.heading) for column in sheet.columns))
        lines.append(_line("---" if column.left else "---:" for column in sheet.columns))
        for index in range(len(sheet.rows)):
            lines.append(_line(_marked(sheet, index, place) for place in range(len(sheet.columns))))
        notes = [_plain(note) for note in sheet.caption.splitlines()]
        found.append("\n".join([*lines, *(part for note in notes for part in ("", note))]))
    return "\n\n".join(found) + ("\n" if found else "")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(sheet: Sheet, row: int, column: int) -> str:
    text, mark = _plain(sheet.text(row, column)), sheet.marks.get((row, column))
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(mark or "", text)


def _plain(text: str) -> str:
    """Escape text so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(" ".join(text.split())))
