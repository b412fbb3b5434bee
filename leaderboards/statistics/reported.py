"""Numbers that a defense reports about its training: the metrics ``report.NAME``."""

from typing import Final

from leaderboards.records.record import Record

PREFIX: Final = "report."
"""The prefix: ``report.queries`` is the number ``queries`` of the defense's report."""


def is_reported(metric: str) -> bool:
    """Whether the metric comes from a defense's report; it may have any unit and no better direction."""
    return metric.startswith(PREFIX)


def reported(record: Record) -> dict[str, float]:
    """The numbers of a record's report, by their names as metrics."""
    return {} if record.report is None else {PREFIX + name: v for name, v in record.report.numbers.items()}


def number_text(value: float) -> str:
    """A reported number as text: whole numbers with separators, others with four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
