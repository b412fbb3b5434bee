"""What the site asks of a row beyond mean and deviation; the one place that knows what those are called."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from leaderboards.metrics import METRICS
from leaderboards.row import Row
from leaderboards.statistics import Summary

SELF_REPORTED: Final = "self-reported"
LOWER_IS_BETTER: Final = frozenset({"forgetting", "unseen_gap"})
HEADINGS: Final = {
    "average_robust_accuracy": "robust",
    "clean_accuracy": "clean",
    "worst_case_accuracy": "worst case",
    "backward_transfer": "backward",
    "forgetting": "forgetting",
    "forward_transfer": "forward",
    "unseen_accuracy": "unseen",
    "unseen_gap": "gap",
    "transfer_accuracy": "transferred",
}
_ORDER: Final = (
    "average_robust_accuracy",
    "clean_accuracy",
    "worst_case_accuracy",
    "unseen_accuracy",
    "unseen_gap",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
)
"""The standard metrics as the site shows them: what is asked first stands first."""


def trust_of(row: Row) -> str:
    """``verified`` or ``self-reported``; a row that says nothing is self-reported."""
    return str(getattr(row, "trust", SELF_REPORTED))


def trust_of_run(directory: Path | None) -> str:
    """The same of one run, by the mark in its directory."""
    try:
        trust = importlib.import_module("leaderboards.trust")
    except ImportError:
        return SELF_REPORTED
    return SELF_REPORTED if directory is None else str(trust.trust_of(directory))


def directories_of(row: Row) -> tuple[str, ...]:
    """Where the row's runs are, in the order of its seeds; empty where the row does not know."""
    return tuple(getattr(row, "directories", ()))


def ranked_by(rows: Sequence[Row]) -> str:
    """The metric that rows were ranked by."""
    return str(getattr(rows[0], "ranked_by", METRICS[0])) if rows else METRICS[0]


def interval_of(summary: Summary) -> tuple[float, float] | None:
    """The 95 % interval of a summary, if it has one."""
    low, high = getattr(summary, "low", None), getattr(summary, "high", None)
    return None if low is None or high is None else (float(low), float(high))


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The metrics that any of the rows has: what they are ranked by, then the standard ones."""
    present = {name for row in rows for name, summary in row.metrics.items() if summary is not None}
    order = dict.fromkeys([ranked_by(rows), *_ORDER, *sorted(present - set(METRICS))])
    return [name for name in order if name in present]


def heading(name: str) -> str:
    """A column's short name."""
    return HEADINGS.get(name, name.replace("_", " "))


def scale_of(name: str) -> tuple[float, int, str]:
    """Factor, digits and unit with which a metric is shown: shares in percent, PSNR in dB, SSIM as it is."""
    if name.endswith("psnr"):
        return 1.0, 1, "dB"
    return (1.0, 3, "") if name.endswith("ssim") else (100.0, 1, "%")


def shown(value: float, name: str) -> str:
    """A metric's value as the site writes it, without its unit."""
    factor, digits, _ = scale_of(name)
    return minus(f"{factor * value:.{digits}f}")


def minus(text: str) -> str:
    """A number's text with a true minus sign, and none before zero."""
    return text.replace("-", "−") if float(text) else text.removeprefix("-")
