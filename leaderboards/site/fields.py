"""How the site shows metrics: which ones, in what order, with what headings and units."""

from collections.abc import Sequence
from typing import Final

from leaderboards.boards.row import Row
from leaderboards.statistics.brackets import BOUNDS, ball_of, balls_of, is_bound, spoken_ball
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.reported import is_reported
from leaderboards.statistics.summary import Summary
from leaderboards.statistics.under import attack_of

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
"""The standard metrics in the order of the site, the most important first."""


def ranked_by(rows: Sequence[Row]) -> str:
    """The metric that rows were ranked by."""
    return rows[0].ranked_by if rows else METRICS[0]


def interval_of(summary: Summary) -> tuple[float, float] | None:
    """The 95 % interval of a summary, if it has one."""
    return None if summary.low is None or summary.high is None else (summary.low, summary.high)


def metric_names(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The metrics that some row has: first the ranking metric and the standard ones, then all others.

    The ranking metric comes first, and bounds by certificates come last among the standard ones, each ball
    as one name, see `ball_of`. The others belong to single methods. What defenses report about their
    training is on the pages of their runs.
    """
    found = {name for row in rows for name, summary in row.metrics.items() if summary is not None}
    present = {name for name in found if not is_reported(name) and not is_bound(name)}
    asked = sorted(filter(attack_of, present))
    standard = [name for name in dict.fromkeys([ranked_by(rows), *asked, *_ORDER]) if name in present]
    others = sorted(present - set(standard) - set(METRICS))
    return [*standard, *(BOUNDS + ball for ball in balls_of(found))], others


def heading(name: str) -> str:
    """A column's short name."""
    if (ball := ball_of(name)) is not None:
        return f"{spoken_ball(ball)} certified to attacked"
    return HEADINGS.get(name, attack_of(name) or name.replace("_", " "))


def scale_of(name: str) -> tuple[float, int, str]:
    """The factor, digits and unit for showing a metric: shares in percent, PSNR in dB, SSIM unscaled."""
    if name.endswith("psnr"):
        return 1.0, 1, "dB"
    return (1.0, 3, "") if name.endswith("ssim") else (100.0, 1, "%")


def shown(value: float, name: str) -> str:
    """A metric's value as the site writes it, without its unit."""
    factor, digits, _ = scale_of(name)
    return minus(f"{factor * value:.{digits}f}")


def minus(text: str) -> str:
    """A number's text with a typographic minus sign, and without a sign before zero."""
    return text.replace("-", "−") if float(text) else text.removeprefix("-")
