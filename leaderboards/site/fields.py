"""What the site asks of a row beyond mean and deviation; the one place that knows what those are called."""

from typing import Any, Final

from leaderboards.metrics import METRICS
from leaderboards.ranking import Row
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


def trust_of(thing: Any) -> str:
    """``verified`` or ``self-reported``, of a row or a record; what says nothing is self-reported."""
    return str(getattr(thing, "trust", None) or SELF_REPORTED)


def interval_of(summary: Summary) -> tuple[float, float] | None:
    """The 95 % interval of a summary, if it has one."""
    low, high = getattr(summary, "low", None), getattr(summary, "high", None)
    return None if low is None or high is None else (float(low), float(high))


def is_tied(row: Row) -> bool:
    """Whether the row's rank is shared with one that it cannot be told from."""
    return bool(getattr(row, "tied", False))


def metric_names(rows: list[Row]) -> list[str]:
    """The metrics that any of the rows has, the standard ones first."""
    present = {name for row in rows for name, summary in row.metrics.items() if summary is not None}
    return [name for name in (*_ORDER, *sorted(present - set(METRICS))) if name in present]


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
