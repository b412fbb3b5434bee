"""Columns of a leaderboard: their names, headings and kinds, and how their values are displayed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from leaderboards.boards.labels import audit, short_hash
from leaderboards.boards.row import Row
from leaderboards.boards.values import COST_PARTS, PARTS, PLAIN, cell, full_name, known_keys, scalar
from leaderboards.errors import RecordError, unknown
from leaderboards.statistics.brackets import (
    ATTACKED,
    BOUNDS,
    CERTIFIED,
    ball_of,
    balls_of,
    is_bound,
    spoken_ball,
    spoken_bound,
)
from leaderboards.statistics.keys import SHORT, sign_of
from leaderboards.statistics.metrics import COMPETITIVENESS, METRICS
from leaderboards.statistics.naming import brief
from leaderboards.statistics.reported import is_reported, number_text
from leaderboards.statistics.results import COSTS
from leaderboards.statistics.summary import Summary
from leaderboards.statistics.under import attack_of

Kind = Literal["text", "count", "number", "spread", "interval", "bounds"]

LABEL: Final = "label"
AUDIT: Final = "audit"
_READING: Final = {LABEL: "defense", AUDIT: "audit"}
"""Columns for display only: the defense with its distinguishing settings, and the verdict with its flags."""
_HEADINGS: Final = {
    "average_robust_accuracy": "average",
    "clean_accuracy": "clean",
    "worst_case_accuracy": "worst case",
    "backward_transfer": "backward",
    "forward_transfer": "forward",
    "unseen_accuracy": "unseen",
    "unseen_gap": "gap",
    "target_aware": "target-aware",
    "competitiveness_average": "CR average",
    "competitiveness_worst": "CR worst",
    "competitiveness_measured": "CR terms",
}
_PART_HEADINGS: Final = {"": "", "mean": "", "interval": " 95 %"}
_NARROW: Final = {"worst case": "worst", "forgetting": "forgot"}
_COUNTS: Final = ("training_forwards", "training_backwards", "parameters", "multiply_adds")
NONE: Final = "–"


@dataclass(frozen=True)
class Column:
    """A column: its name, its heading and how its values are shown.

    ``metric`` is the metric or cost that it shows, if any; ``sign`` is the better direction (0: neither).
    With ``spread``, values are shown as mean ± standard deviation; with ``interval``, as both ends; with
    ``percent``, fractions are shown as percentages. ``bounds`` shows a certified and an attacked share.
    """

    name: str
    heading: str
    kind: Kind
    metric: str = ""
    sign: int = 0
    percent: bool = False

    @property
    def left(self) -> bool:
        """Whether its values are aligned to the left."""
        return self.kind == "text"


class Ends(NamedTuple):
    """Certified and attacked share, on average over ``n`` of the row's seeds."""

    low: float
    high: float
    n: int
    seeds: int


def column_of(name: str, rows: Sequence[Row]) -> Column:
    """The column of a name: a key of `flat`, ``params.NAME`` and the like, a metric or cost (mean ± standard
    deviation), ``METRIC_interval``, ``label`` or ``audit``. Metrics also have short names. ``robust.ATTACK``
    is a column if the rows were computed with it, see `ranking.rows`; ``bounds.linf-0.2`` is one if some row
    has a certificate for that ball.

    Raises:
        RecordError: there is no such column.
    """
    full = full_name(name)
    if full in _READING:
        return Column(full, _READING[full], "text")
    if full == "seeds":
        return Column(full, full, "count")
    balls = balls_of(metric for row in rows for metric in row.metrics)
    if (ball := ball_of(full)) in balls:
        return Column(full, f"{spoken_ball(ball)} certified to attacked", "bounds", CERTIFIED + ball, 0, True)
    extra = {metric for row in rows for metric in row.metrics} - set(METRICS)
    for metric in (*METRICS, *COSTS, *sorted(extra)):
        parts = COST_PARTS if metric in COSTS else (*PARTS, "interval")
        if full in (metric, *(f"{metric}_{part}" for part in parts)):
            return _metric_column(metric, full.removeprefix(metric).removeprefix("_"))
    known = known_keys(rows)
    if full not in known:
        choices = [*SHORT, *_READING, *known, *METRICS, *COSTS, *extra, *(BOUNDS + ball for ball in balls)]
        raise RecordError(f"unknown column {unknown(name, choices, [*_READING, *PLAIN, *SHORT, *COSTS])}")
    values = [cell(row, full) for row in rows]
    numeric = bool(rows) and all(isinstance(value, int | float | None) for value in values)
    boolean = any(isinstance(value, bool) for value in values)
    return Column(full, _HEADINGS.get(full, full), "count" if numeric and not boolean else "text")


def _metric_column(metric: str, part: str) -> Column:
    kinds: dict[str, Kind] = {"": "spread", "interval": "interval"}
    kind = kinds.get(part, "number")
    ranked = metric not in COSTS and not is_reported(metric) and part in ("", "mean")
    sign = sign_of(metric) if ranked else 0
    spoken = spoken_bound(metric) if is_bound(metric) else metric.replace("_", " ")
    named = _HEADINGS.get(metric, attack_of(metric) or spoken)
    heading = named + _PART_HEADINGS.get(part, f" {part}")
    name = f"{metric}_{part}" if part else metric
    percent = not (metric in COSTS or metric.endswith(("psnr", "ssim")) or is_reported(metric))
    return Column(name, heading, kind, metric, sign, percent)


def default_columns(rows: Sequence[Row], *, compact: bool = False) -> list[Column]:
    """Rank, defense, the metrics that some row has, seeds, audit; within 100 characters if ``compact``."""
    key = rows[0].ranked_by
    names = ["rank", LABEL, *([] if compact else ["regime"]), key]
    if any((summary := row.metrics[key]) is not None and summary.low is not None for row in rows):
        names.append(f"{key}_interval")
    shown = [name for name in METRICS if name != key and any(row.metrics[name] for row in rows)]
    if compact:
        narrow = (
            "average_robust_accuracy",
            "clean_accuracy",
            "worst_case_accuracy",
            "unseen_accuracy",
            "forgetting",
        )
        names += [f"{name}_mean" for name in narrow if name in shown]
    else:
        names += shown
    beside = [name for name in COMPETITIVENESS if any(name in row.metrics for row in rows)]
    names += [f"{name}_mean" for name in beside] if compact else beside
    names += [BOUNDS + ball for ball in balls_of(name for row in rows for name in row.metrics)]
    names += ["seeds", AUDIT]
    if any(row.trust != "self-reported" for row in rows):
        names.append("trust")
    columns = [column_of(name, rows) for name in names]
    if compact:
        return [replace(one, heading=_narrow(one)) for one in columns]
    return columns


def _narrow(column: Column) -> str:
    if column.kind == "bounds":
        return spoken_ball(column.name.removeprefix(BOUNDS))
    return "95 %" if column.kind == "interval" else _NARROW.get(column.heading, column.heading)


def data_columns(names: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """Column names for data: a metric becomes its mean, standard deviation and both ends of its interval."""
    found: list[str] = []
    for name in names:
        column = column_of(name, rows)
        parts: tuple[str, ...] = ()
        if column.kind == "spread":
            parts = COST_PARTS if column.metric in COSTS else PARTS
        elif column.kind == "interval":
            parts = ("low", "high")
        if (ball := ball_of(column.name)) is not None:
            found += [f"{CERTIFIED}{ball}_mean", f"{ATTACKED}{ball}_mean"]
        else:
            found += [f"{column.metric}_{part}" for part in parts] or [column.name]
    return list(dict.fromkeys(found))


def raw(row: Row, column: Column, label: str) -> Any:
    """The value of a row in a column; a `Summary` for a spread or an interval, a `Ends` for bounds."""
    if column.name in _READING:
        return label if column.name == LABEL else audit(row)
    if (ball := ball_of(column.name)) is not None:
        low, high = (row.metrics.get(end + ball) for end in (CERTIFIED, ATTACKED))
        return None if low is None or high is None else Ends(low.mean, high.mean, low.n, len(row.seeds))
    if column.kind in ("spread", "interval"):
        return row.metrics.get(column.metric) or row.cost.get(column.metric)
    return cell(row, column.name)


def written(column: Column, value: Any) -> str:
    """A value as displayed: percent to one decimal, ``52.2 ± 0.7``, ``[47.1, 57.2]``."""
    if value is None:
        return NONE
    if isinstance(value, Ends):
        some = f" ({value.n} of {value.seeds} seeds)" if value.n < value.seeds else ""
        return f"{_one(column, value.low)} to {_one(column, value.high)}{some}"
    if isinstance(value, Summary):
        if column.kind == "interval":
            return NONE if value.low is None else f"[{_one(column, value.low)}, {_one(column, value.high)}]"
        spread = "" if value.std is None else f" ± {_one(column, value.std)}"
        return f"{_one(column, value.mean)}{spread}"
    if column.kind == "number":
        return _one(column, value)
    if column.name in ("protocol", "fingerprint"):
        return short_hash(value)
    if column.name == "seeds":
        return str(len(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.name in ("sequence", "training"):
        return " → ".join(map(brief, value)) or NONE
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return str(scalar(value))


def _one(column: Column, value: float | None) -> str:
    if value is None:
        return NONE
    if column.percent:
        return f"{100 * value:.1f}"
    if is_reported(column.metric):
        return number_text(value)
    if column.metric in _COUNTS:
        return f"{value:,.0f}"
    return f"{value:.3f}" if column.metric.endswith("ssim") else f"{value:.1f}"
