"""The values of a row under stable names: the columns of every format, and the keys of every filter."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from leaderboards.boards.row import Row
from leaderboards.errors import RecordError, unknown
from leaderboards.statistics.keys import SHORT
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.results import COSTS, canonical

PLAIN: Final = (
    "rank",
    "defense",
    "params",
    "regime",
    "target_aware",
    "verdict",
    "flags",
    "dataset",
    "fingerprint",
    "model",
    "sequence",
    "training",
    "plan",
    "pretrain",
    "protocol",
    "seeds",
    "runs",
    "trust",
    "ranked_by",
    "note",
    "worst_case_points",
)
PARTS: Final = ("mean", "std", "low", "high")
COST_PARTS: Final = ("mean", "std")
_NESTED: Final = ("params", "plan", "pretrain")


def flat(row: Row) -> dict[str, Any]:
    """One row as scalars under stable names; lists and mappings as JSON text.

    Every metric gives four columns, ``NAME_mean``, ``NAME_std``, ``NAME_low`` and ``NAME_high``, every cost
    the first two. Metrics beyond the standard ones come last.
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
    """Every key that `cell` knows for some of the rows: columns, and ``params.NAME`` and the like."""
    rows = list(rows)
    nested = {
        f"{outer}.{inner}"
        for row in rows
        for outer in _NESTED
        for inner in (getattr(row, outer) if isinstance(getattr(row, outer), Mapping) else ())
    }
    return [*standard_columns(), *extra_columns(rows), *sorted(nested)]


def scalar(value: Any) -> Any:
    """A value that fits one field: lists and mappings as JSON text."""
    return canonical(value) if isinstance(value, list | tuple | dict) else value


def full_name(name: str) -> str:
    """A column's own name for one that begins with a short word: ``average_mean``, ``worst-case_low``."""
    for short, metric in SHORT.items():
        for part in ("", *(f"_{part}" for part in (*PARTS, "interval"))):
            if name.replace("-", "_") == short.replace("-", "_") + part:
                return metric + part
    return name.replace("-", "_") if name.replace("-", "_") in standard_columns() else name


def split_part(name: str) -> tuple[str, str]:
    """A metric's name and the part of it that a column shows, which is empty for the whole.

    >>> split_part("robust.pgd_low"), split_part("clean_accuracy")
    (('robust.pgd', 'low'), ('clean_accuracy', ''))
    """
    metric, _, part = name.rpartition("_")
    return (metric, part) if part in (*PARTS, "interval") else (name, "")


def cell(row: Row, name: str) -> Any:
    """A row's value of a plain column, of ``NAME_mean`` and the like, or of ``params.NAME``.

    None where the row has none.

    Raises:
        RecordError: no such column.
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
