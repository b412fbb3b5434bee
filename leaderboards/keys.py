"""Names of metrics on the command line, and which direction is better."""

import difflib
from collections.abc import Iterable
from typing import Final

from leaderboards.errors import RecordError
from leaderboards.metrics import METRICS
from leaderboards.under import PREFIX, attack_of

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
"""Short words for the metrics, as options take them."""
LOWER_IS_BETTER: Final = frozenset({"forgetting", "unseen_gap"})


def metric_of(text: str) -> str:
    """The metric that a short word or its own name means; dashes and underscores are one.

    ``robust.ATTACK`` is the accuracy under a single attack; whether there is one, the rows say.

    Raises:
        RecordError: there is no such metric.
    """
    if attack_of(text.strip()):
        return text.strip()
    plain = text.strip().lower().replace("-", "_")
    for short, metric in SHORT.items():
        if plain in (short.replace("-", "_"), metric):
            return metric
    shown = [*SHORT, f"{PREFIX}ATTACK"]
    raise RecordError(f"no metric to rank by {unknown(text, [*SHORT, *METRICS], shown)}")


def sign_of(metric: str) -> int:
    """1 where more is better, -1 where less is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def unknown(given: str, names: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """What an error says of a name that is not there: the name, the nearest one, what there is."""
    names = list(names)
    return f"{given!r}:{nearest(given, names)} there are {listed(names if shown is None else shown)}"


def nearest(given: str, names: Iterable[str]) -> str:
    """`` did you mean 'x'?``, or nothing where no name is near."""
    near = difflib.get_close_matches(given.lower(), list(names), n=1, cutoff=0.5)
    return f" did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """The first dozen of the names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{', '.join(names[:12]) or 'none'}{more}"
