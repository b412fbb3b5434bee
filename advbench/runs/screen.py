"""A record on one screen, for Python's prompt and for notebooks."""

import io
from html import escape

from rich.table import Table

from advbench.runs.tables import audit_text, headline, matrix_table, metrics_text
from advbench.runtime.console import SafeConsole, in_blocks
from leaderboards import Record

WIDTH = 100
"""Letters of a line of text."""
MOST_ROWS = 12
"""Rows of the matrix on one screen; of a longer one the last are shown."""
MOST_FLAGS = 5


def text_of(record: Record) -> str:
    """Headline, matrix, metrics and audit as plain text."""
    file = io.StringIO()
    plain = {"color_system": None, "force_terminal": False, "force_jupyter": False}
    console = SafeConsole(file=file, width=WIDTH, **plain)
    console.print(headline(record), soft_wrap=True)
    matrix = _shortened(matrix_table(record))
    for table in in_blocks(matrix, WIDTH):
        console.print(table)
    console.print(metrics_text(record), soft_wrap=True)
    console.print(_audit(record), soft_wrap=True)
    return file.getvalue().rstrip("\n")


def html_of(record: Record) -> str:
    """Headline, matrix, metrics and audit as HTML; everything that a record says is escaped."""
    metrics = "<br>".join(map(escape, metrics_text(record).split("\n")))
    verdict, *flags = _audit(record).split("\n")
    items = "".join(f"<li>{escape(flag.strip())}</li>" for flag in flags)
    return (
        f"<div><p><b>{escape(headline(record))}</b></p>{_html_table(_shortened(matrix_table(record)))}"
        f'<p style="font-family: monospace; white-space: pre">{metrics}</p>'
        f"<p>{escape(verdict)}</p>{f'<ul>{items}</ul>' if items else ''}</div>"
    )


def _shortened(table: Table) -> Table:
    """The last rows of a long table, with its title saying so."""
    if table.row_count <= MOST_ROWS:
        return table
    short = Table(title=f"{table.title} (last {MOST_ROWS} of {table.row_count} rows)", title_justify="left")
    for column in table.columns:
        short.add_column(column.header, justify=column.justify)
    for row in list(zip(*(column.cells for column in table.columns), strict=True))[-MOST_ROWS:]:
        short.add_row(*row)
    return short


def _audit(record: Record) -> str:
    """The audit's verdict and its first flags."""
    lines = audit_text(record).split("\n")
    left = len(lines) - 1 - MOST_FLAGS
    return "\n".join(lines[: MOST_FLAGS + 1] + ([f"  and {left} more"] if left > 0 else []))


def _html_table(table: Table) -> str:
    heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    heads = heads.replace("\n", "<br>")
    rows = [
        "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        for row in zip(*(column.cells for column in table.columns), strict=True)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = f"<caption>{escape(str(table.title))}</caption>"
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
