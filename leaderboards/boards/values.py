"""The values of a row under stable names, which serve as columns of all formats and keys of all filters."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from leaderboards.boards.row import Row
from leaderboards.errors import RecordError, unknown
from leaderboards.statistics.keys import SHORT
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.results import COSTS, canonical

_LAST: Final = ("trust", "ranked_by", "note", "worst_case_points")
_NOT_PLAIN: Final = ("metrics", "cost", "refused", "directories")
PLAIN: Final = (*(one.name for one in fields(Row) if one.name not in (*_LAST, *_NOT_PLAIN)), *_LAST)
"""The fields of a row with one value each, in the order of the columns."""
PARTS: Final = ("mean", "std", "low", "high")
COST_PARTS: Final = ("mean", "std")
_NESTED: Final = ("params", "plan", "pretrain")


def flat(row: Row) -> dict[str, Any]:
    """One row as scalars under stable names; lists and mappings become JSON text.

    Every metric gives four columns, ``NAME_mean``, ``NAME_std``, ``NAME_low`` and ``NAME_high``; every cost
    gives the first two. Metrics beyond the standard ones come last.
    """
    names = [*standard_columns(), *extra_columns([row])]
    return {name: scalar(cell(row, name)) for name in names}


def standard_columns() -> list[str]:
    """The columns that every row has, in their order."""
    metrics = [f"{name}_{part}" for name in METRICS for part in PARTS]
    return [*PLAIN, *metrics, *(f"{name}_{part}" for name in COSTS for part in COST_PARTS)]


def extra_columns(rows: Iterable[Row]) -> list[str]:
    """The columns of metrics beyond the standard ones."""
    extra = sorted({name for row in rows for name in row.metrics} - set(METRICS))
    return [f"{name}_{part}" for name in extra for part in PARTS]


def known_keys(rows: Iterable[Row]) -> list[str]:
    """Every key that `cell` accepts for some of the rows: columns, and ``params.NAME`` and the like."""
    rows = list(rows)
    nested = {
        f"{outer}.{inner}"
        for row in rows
        for outer in _NESTED
        for inner in (getattr(row, outer) if isinstance(getattr(row, outer), Mapping) else ())
    }
    return [*standard_columns(), *extra_columns(rows), *sorted(nested)]


def scalar(value: Any) -> Any:
    """A value for a single field: lists and mappings become JSON text."""
    return canonical(value) if isinstance(value, list | tuple | dict) else value


def full_name(name: str) -> str:
    """The full name of a column given with a short metric name: ``average_mean``, ``worst-case_low``."""
    for short, metric in SHORT.items():
        for part in ("", *(f"_{part}" for part in (*PARTS, "interval"))):
            if name.replace("-", "_") == short.replace("-", "_") + part:
                return metric + part
    return name.replace("-", "_") if name.replace("-", "_") in standard_columns() else name


def split_part(name: str) -> tuple[str, str]:
    """The metric of a column name and the part that the column shows; the part is empty for the whole.

    >>> split_part("robust.pgd_low"), split_part("clean_accuracy")
    (('robust.pgd', 'low'), ('clean_accuracy', ''))
    """
    metric, _, part = name.rpartition("_")
    return (metric, part) if part in (*PARTS, "interval") else (name, "")


def cell(row: Row, name: str) -> Any:
    """A row's value in a plain column, in ``NAME_mean`` and the like, or in ``params.NAME``.

    None if the row has no value there.

    Raises:
        RecordError: there is no such column.
    """
    if name in PLAIN:
        return getattr(row, name)
    outer, dot, inner = name.partition(".")
    if dot and outer in _NESTED:
        values = getattr(row, outer)
        return values.get(inner) if isinstance(values, Mapping) else None
    metric, _, part = name.rpartition("_")
    if part in PARTS:
        summary = row.metrics.get(metric) or row.cost.get(metric)
        return None if summary is None else getattr(summary, part)
    raise RecordError(f"unknown column {unknown(name, known_keys([row]))}")
