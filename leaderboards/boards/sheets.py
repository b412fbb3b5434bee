"""Leaderboards as sheets: chosen columns, grouped or pivoted, independent of any output format."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from leaderboards.boards.columns import Column, column_of, default_columns, raw, written
from leaderboards.boards.labels import labels, title_of
from leaderboards.boards.row import WORST_CASE, Row
from leaderboards.boards.values import full_name, split_part
from leaderboards.errors import RecordError
from leaderboards.printable import in_line
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.results import canonical
from leaderboards.statistics.summary import Summary
from leaderboards.statistics.under import attack_of

Mark = Literal["best", "second"]
LOSSES = frozenset({"forgetting", "backward_transfer", "unseen_gap"})
"""Metrics of how much accuracy is lost, which say nothing about how much there was."""
SPARE: Final = ("forgetting_mean", "unseen_accuracy_mean", "clean_accuracy_mean", "worst_case_accuracy_mean")


@dataclass(frozen=True)
class Sheet:
    """One table: raw values by row, ``marks`` of the best and second best, and rows that follow a line.

    ``spare`` lists columns that a narrow terminal may drop, in the order in which it drops them.
    """

    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Any]]
    marks: dict[tuple[int, int], Mark] = field(default_factory=dict)
    rules: frozenset[int] = frozenset()
    spare: tuple[str, ...] = ()

    def text(self, row: int, column: int) -> str:
        """A value as displayed, safe for a terminal."""
        return in_line(written(self.columns[column], self.rows[row][column]))


@dataclass(frozen=True)
class View:
    """How rows are laid out; None or empty means the default.

    Attributes:
        columns: names of columns, see `column_of`.
        group_by: a key; makes one table for each of its values rather than for each comparison group.
        pivot: ``(rows, columns, value)``, three keys.
    """

    columns: tuple[str, ...] = ()
    group_by: str | None = None
    pivot: tuple[str, str, str] | None = None

    @classmethod
    def of(
        cls, columns: str | Iterable[str] = (), group_by: str | None = None, pivot: str | None = None
    ) -> "View":
        """Make a view from command-line options.

        Raises:
            RecordError: ``pivot`` does not name three keys, or is given with another option.
        """
        listed = (names_in(columns) if columns.strip() else []) if isinstance(columns, str) else columns
        names = tuple(name.strip() for name in listed)
        if pivot is None:
            return cls(names, group_by)
        keys = tuple(names_in(pivot))
        if len(keys) != 3 or not all(keys):
            raise RecordError(f"pivot {pivot!r} cannot be read: write ROWS,COLUMNS,VALUE")
        if names or group_by is not None:
            raise RecordError("a pivot has its own rows and columns: give no columns and no group-by with it")
        return cls(pivot=(keys[0], keys[1], keys[2]))

    def intervals(self, default: Iterable[str]) -> list[str]:
        """The metrics whose intervals are shown; ``default`` if the columns are the default ones."""
        names = [self.pivot[2]] if self.pivot else self.columns
        if not names:
            return list(default)
        parts = [split_part(full_name(name)) for name in names]
        asked = {metric for metric, part in parts if part in ("", "low", "high", "interval")}
        return [metric for metric in (*METRICS, *self.under()) if metric in asked]

    def under(self) -> list[str]:
        """The accuracies under single attacks that are shown: metrics ``robust.ATTACK``."""
        names = [*self.columns, *(self.pivot or ()), *filter(None, [self.group_by])]
        return list(dict.fromkeys(split_part(name)[0] for name in names if attack_of(name)))


def names_in(text: str) -> list[str]:
    """The names in a comma-separated list; commas inside ``robust.pgd:eps=0.1,steps=50`` separate knobs.

    >>> names_in("label, robust.pgd:eps=0.1,steps=50_mean, clean")
    ['label', 'robust.pgd:eps=0.1,steps=50_mean', 'clean']
    """
    found: list[str] = []
    for part in map(str.strip, text.split(",")):
        if "=" in part and found and attack_of(found[-1]) and not attack_of(part):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def sheets(rows: Sequence[Row], view: View | None = None, *, compact: bool = False) -> list[Sheet]:
    """One sheet for each comparison group, or for each value of ``view.group_by``, or the pivot.

    The title names data set, sequence, model and protocol; the caption gives the full sequence and says
    which rows have no intervals. Target-aware rows are below a line, with ranks of their own. Metrics
    that no row has are left out of the default columns.

    Raises:
        RecordError: a column or key is unknown, or a pivot has two rows in one cell.
    """
    view = view or View()
    if view.pivot is not None:
        return [pivoted(rows, view.pivot)] if rows else []
    key = None if view.group_by is None else column_of(view.group_by, rows)
    for name in view.columns:
        column_of(name, rows)
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        place: Hashable = row.comparison if key is None else _full(raw(row, key, row.defense))
        groups.setdefault(place, []).append(row)
    found = []
    for group in groups.values():
        title = title_of(group[0])
        if key is not None:
            title = f"{key.heading}: {written(key, raw(group[0], key, group[0].defense))}"
        found.append(_sheet(group, title, view.columns, compact, alike=key is None))
    return found


def _sheet(rows: list[Row], title: str, names: Sequence[str], compact: bool, *, alike: bool) -> Sheet:
    rows = sorted(rows, key=lambda row: (row.comparison, row.target_aware)) if alike else rows
    if names:
        columns = [column_of(name, rows) for name in names]
    else:
        columns = default_columns(rows, compact=compact)
        if not alike:
            differing = [
                name
                for name in ("dataset", "sequence", "model", "protocol")
                if len({canonical(getattr(row, name)) for row in rows}) > 1
            ]
            columns[2:2] = [column_of(name, rows) for name in differing]
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.comparison, []).append(row)
    named = {
        id(row): label for group in groups.values() for row, label in zip(group, labels(group), strict=True)
    }
    shown = [named[id(row)] for row in rows]
    if compact and len({row.regime for row in rows}) > 1:
        shown = [f"{label}, {row.regime}" for label, row in zip(shown, rows, strict=True)]
    values = [[raw(row, column, label) for column in columns] for row, label in zip(rows, shown, strict=True)]
    boards = [(row.comparison, row.target_aware) for row in rows]
    rules = frozenset(index for index in range(1, len(rows)) if boards[index] != boards[index - 1])
    notes = [" → ".join(rows[0].sequence) if alike else "", _worst_case(columns, rows), _notes(rows)]
    caption = "\n".join(map(in_line, filter(None, notes)))
    spare = SPARE if compact and not names else ()
    return Sheet(title, caption, columns, values, _marks(columns, values, rows, boards), rules, spare)


def _worst_case(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """On how many points the worst case is measured, if shown: other columns may cover more points."""
    if not any(column.metric == WORST_CASE for column in columns):
        return ""
    return "; ".join(dict.fromkeys(note for row in rows if (note := row.worst_case_note)))


def _notes(rows: Sequence[Row]) -> str:
    """Why some rows are not ranked, and why others have no intervals and no tests."""
    stored = [row for row in rows if row.note and row.directories and all(row.directories)]
    lines = []
    for what, notes in (
        ("not ranked", [row.note for row in stored if row.refused]),
        ("no interval, and ranked by its value alone", [row.note for row in stored if not row.refused]),
    ):
        if notes:
            more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
            lines.append(f"{what}: {notes[0]}{more}")
    return "\n".join(lines)


def _marks(
    columns: Sequence[Column],
    values: Sequence[Sequence[Any]],
    rows: Sequence[Row],
    boards: Sequence[Hashable],
) -> dict[tuple[int, int], Mark]:
    """The best and second best value of each metric among the ok rows of a board, as far as shown.

    A defense that never learnt forgets nothing, so metrics of loss are marked only if rows are ranked by one.
    """
    found: dict[tuple[int, int], Mark] = {}
    for board in dict.fromkeys(boards):
        members = [
            i for i, row in enumerate(rows) if boards[i] == board and row.verdict == "ok" and not row.refused
        ]
        for place, column in enumerate(columns):
            metric = column.name.removesuffix("_mean")
            asked = metric not in LOSSES or metric in {rows[i].ranked_by for i in members}
            if column.sign and asked and len(members) > 1:
                mine = {i: values[i][place] for i in members}
                found |= {(i, place): mark for i, mark in best_two(column, mine).items()}
    return found


def best_two(column: Column, values: dict[int, Any]) -> dict[int, Mark]:
    """The places of the best and the second best value; values that are displayed alike are equal."""
    alone = replace(column, kind="number")
    shown: dict[int, float] = {}
    for place, value in values.items():
        number = value.mean if isinstance(value, Summary) else value
        if number is not None:
            shown[place] = float(written(alone, number).replace(",", "")) * column.sign
    levels = sorted(set(shown.values()), reverse=True)
    marks: tuple[Mark, Mark] = ("best", "second")
    ranked = dict(zip(levels, marks, strict=False))
    return {place: ranked[value] for place, value in shown.items() if value in ranked}


def pivoted(rows: Sequence[Row], keys: tuple[str, str, str]) -> Sheet:
    """A sheet with a row per value of the first key, a column per value of the second, the third in cells.

    Raises:
        RecordError: a key is unknown, or two rows belong in one cell.
    """
    down, across, value = (column_of(key, rows) for key in keys)
    named = labels(rows)
    lefts, tops = (
        _headings(column, [raw(row, column, label) for row, label in zip(rows, named, strict=True)])
        for column in (down, across)
    )
    places: dict[tuple[str, str], int] = {}
    for index, place in enumerate(zip(lefts, tops, strict=True)):
        other = places.get(place)
        if other is None or rows[other].refused:
            # A ranked row replaces a refused one.
            places[place] = index
        elif not rows[index].refused:
            raise RecordError(_crowded(rows[other], rows[index], place, keys))
    columns = [replace(down, kind="text", sign=0)]
    columns += [replace(value, name=top, heading=top) for top in dict.fromkeys(tops)]
    table: list[list[Any]] = [[left, *[None] * (len(columns) - 1)] for left in dict.fromkeys(lefts)]
    marks: dict[tuple[int, int], Mark] = {}
    for column, top in enumerate(dict.fromkeys(tops), 1):
        members = {
            line: places[left, top] for line, left in enumerate(dict.fromkeys(lefts)) if (left, top) in places
        }
        for line, index in members.items():
            table[line][column] = raw(rows[index], value, named[index])
        boards = {(rows[index].comparison, rows[index].target_aware) for index in members.values()}
        honest = {line: table[line][column] for line, index in members.items() if rows[index].honest}
        if value.sign and len(boards) == 1 and len(honest) > 1:
            marks |= {(line, column): mark for line, mark in best_two(value, honest).items()}
    return Sheet(
        f"{value.heading} by {down.heading} and {across.heading}",
        _worst_case([value], rows),
        columns,
        table,
        marks,
    )


def _headings(column: Column, values: Sequence[Any]) -> list[str]:
    """Each value as displayed; in full if two of them would look alike."""
    texts: dict[str, set[str]] = {}
    for one in values:
        texts.setdefault(written(column, one), set()).add(_full(one))
    return [text if len(texts[text := written(column, one)]) == 1 else _full(one) for one in values]


def _full(value: Any) -> str:
    return repr(value) if isinstance(value, Summary) else canonical(value)


def _crowded(first: Row, second: Row, place: Sequence[str], keys: Sequence[str]) -> str:
    """The error for two rows in one cell of a pivot: how they differ."""
    names = (
        "dataset",
        "fingerprint",
        "model",
        "sequence",
        "regime",
        "params",
        "plan",
        "training",
        "pretrain",
    )
    apart = [name for name in (*names, "protocol") if getattr(first, name) != getattr(second, name)]
    at = " and ".join(f"{key} {text!r}" for key, text in zip(keys, place, strict=False))
    return f"pivot: several rows have {at}: they differ in {', '.join(apart)}; narrow them with --where"
