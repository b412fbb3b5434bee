"""Names of metrics on the command line, and which direction is better."""

from typing import Final

from leaderboards.errors import RecordError, unknown
from leaderboards.statistics.metrics import METRICS
from leaderboards.statistics.under import PREFIX, attack_of

SHORT: Final = {
    "average": "average_robust_accuracy",
    "clean": "clean_accuracy",
    "worst-case": "worst_case_accuracy",
    "backward": "backward_transfer",
    "forgetting": "forgetting",
    "forward": "forward_transfer",
    "unseen": "unseen_accuracy",
    "gap": "unseen_gap",
}
"""The short names of metrics that options accept."""
LOWER_IS_BETTER: Final = frozenset({"forgetting", "unseen_gap"})


def metric_of(text: str) -> str:
    """The metric with a short or full name; dashes and underscores are equivalent.

    ``robust.ATTACK`` is the accuracy under a single attack; the rows decide whether it exists.

    Raises:
        RecordError: there is no such metric.
    """
    plain = text.strip().lower().replace("-", "_")
    if attack_of(plain):
        return PREFIX + text.strip()[len(PREFIX) :]
    for short, metric in SHORT.items():
        if plain in (short.replace("-", "_"), metric):
            return metric
    shown = [*SHORT, f"{PREFIX}ATTACK"]
    raise RecordError(f"no metric {unknown(text, [*SHORT, *METRICS], shown)}")


def sign_of(metric: str) -> int:
    """1 if more is better, -1 if less is better."""
    return -1 if metric in LOWER_IS_BETTER else 1
