"""Leaderboards on a terminal: rich tables, with a faster path for tables that fit without wrapping."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from leaderboards.boards.columns import LABEL
from leaderboards.boards.sheets import Sheet
from leaderboards.printable import in_line, printable

_NAME_WIDTH: Final = 8
_STYLES: Final = {"best": "bold", "second": "underline"}


class SheetTable(Table):
    """A sheet as a rich table.

    Rich measures and wraps every cell, which takes a millisecond per row. If all columns fit without
    wrapping, this class draws the rows itself, inside the frame that rich draws around the first row.
    """

    def __init__(self, sheet: Sheet) -> None:
        caption = Text(printable(sheet.caption)) if sheet.caption else None
        super().__init__(title=Text(in_line(sheet.title)), caption=caption)
        self._sheet = sheet
        self._filled = False
        for column in sheet.columns:
            # Numbers are never cut or wrapped: only columns of words are.
            self.add_column(
                Text(in_line(column.heading)),
                justify="left" if column.left else "right",
                no_wrap=not column.left,
                overflow="fold",
                min_width=_NAME_WIDTH if column.name == LABEL else None,
            )

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return len(self._sheet.rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = self._sheet
        texts = [
            [sheet.text(row, place) for place in range(len(sheet.columns))] for row in range(self.row_count)
        ]
        headings = [in_line(column.heading) for column in sheet.columns]
        least = [column.min_width or 0 for column in self.columns]
        widths = [max(low, *map(cell_len, own)) for low, *own in zip(least, headings, *texts, strict=True)]
        frame_width = 3 * len(widths) + 1
        # Words can be wrapped, but keep a minimum width.
        folded = [
            min(width, _NAME_WIDTH) if column.left else width
            for width, column in zip(widths, sheet.columns, strict=True)
        ]
        if sum(folded) + frame_width > options.max_width:
            if (narrower := _narrower(sheet)) is not None:
                yield from SheetTable(narrower).__rich_console__(console, options)
                return
            for own_column in self.columns:
                own_column.no_wrap = False
        plain = all(text.isprintable() for line in texts for text in line)
        if not texts or not plain or sum(widths) + frame_width > options.max_width:
            self._fill()
            yield from super().__rich_console__(console, options)
            return
        frame = Table(title=self.title, caption=self.caption)
        for column, width in zip(self.columns, widths, strict=True):
            frame.add_column(column.header, justify=column.justify, width=width)
        frame.add_row(*(Text("") for _ in widths))
        box = HEAVY_HEAD.substitute(options, safe=console.safe_box)
        empty = f" {box.mid_left}{box.mid_vertical}{box.mid_right}"
        for line in console.render_lines(frame, options, pad=False):
            text = "".join(segment.text for segment in line)
            if text.startswith(box.mid_left) and not text.strip(empty):
                yield from self._rows(texts, widths, console)
            else:
                yield from line
                yield Segment.line()

    def _rows(self, texts: list[list[str]], widths: list[int], console: Console) -> Iterator[Segment]:
        sheet, box = self._sheet, HEAVY_HEAD.substitute(console.options, safe=console.safe_box)
        left = [column.left for column in sheet.columns]
        rule = box.get_row([width + 2 for width in widths], "row", edge=True) + "\n"
        marked = {row for row, _ in sheet.marks}
        styles = {mark: Style.parse(style) for mark, style in _STYLES.items()}
        for row, line in enumerate(texts):
            if row in sheet.rules:
                yield Segment(rule)
            padded = []
            for text, width, leftwards in zip(line, widths, left, strict=True):
                space = " " * (width - cell_len(text))
                padded.append(text + space if leftwards else space + text)
            if row not in marked:
                middle = f" {box.mid_vertical} ".join(padded)
                yield Segment(f"{box.mid_left} {middle} {box.mid_right}\n")
                continue
            for place, text in enumerate(padded):
                yield Segment(f"{box.mid_vertical if place else box.mid_left} ")
                yield Segment(text, styles.get(sheet.marks.get((row, place), "")))
                yield Segment(" ")
            yield Segment(f"{box.mid_right}\n")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        self._fill()
        return super().__rich_measure__(console, options)

    def _fill(self) -> None:
        """Pass the rows to rich, which needs them for wrapping."""
        if self._filled:
            return
        self._filled = True
        sheet = self._sheet
        for index in range(len(sheet.rows)):
            if index in sheet.rules:
                self.add_section()
            # Use Text, not str: rich would read brackets in parameters as markup.
            self.add_row(
                *(
                    Text(sheet.text(index, place), style=_STYLES.get(sheet.marks.get((index, place), ""), ""))
                    for place in range(len(sheet.columns))
                )
            )


def _narrower(sheet: Sheet) -> Sheet | None:
    """The sheet without its first spare column, which its caption names; None if it has no spare column."""
    names = [column.name for column in sheet.columns]
    for index, name in enumerate(sheet.spare):
        if name in names:
            out = names.index(name)
            marks = {key: mark for key, mark in sheet.marks.items() if key[1] != out}
            return replace(
                sheet,
                caption=f"{sheet.caption}\nno room here for {sheet.columns[out].heading}",
                columns=[*sheet.columns[:out], *sheet.columns[out + 1 :]],
                rows=[[*line[:out], *line[out + 1 :]] for line in sheet.rows],
                marks={(row, place - (place > out)): mark for (row, place), mark in marks.items()},
                spare=sheet.spare[index + 1 :],
            )
    return None
