"""Robust accuracy from both sides: certified points below, and points that survive every attack above."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from leaderboards.records.certificates import Certificate
from leaderboards.records.record import Record

WITHIN: Final = ("l1", "l2", "linf")
"""Norms in an order in which the ball of each lies in the balls of the later ones with the same radius."""
CERTIFIED: Final = "certified."
ATTACKED: Final = "attacked."
"""Metrics ``certified.linf-0.2`` and ``attacked.linf-0.2``: the two ends, as shares of the same points."""
BOUNDS: Final = "bounds."
"""The column ``bounds.linf-0.2`` shows both."""


@dataclass(frozen=True)
class Bracket:
    """Of ``points``, at least ``low`` and at most ``high`` withstand every image in a ball.

    ``attacks`` holds the attacks that ``high`` survives; without any, it counts points that are right.
    """

    ball: str
    points: int
    low: int
    high: int
    attacks: list[str]

    def metrics(self) -> dict[str, float]:
        """Both ends as metrics of a run."""
        return {CERTIFIED + self.ball: self.low / self.points, ATTACKED + self.ball: self.high / self.points}


def lies_inside(norm: str | None, eps: float | None, ball: tuple[str, float]) -> bool:
    """Whether every image that an attack may make lies in a ball (norm, radius) around the point."""
    outer, radius = ball
    if norm not in WITHIN or eps is None:
        return False
    return WITHIN.index(norm) <= WITHIN.index(outer) and eps <= radius * (1 + 1e-9)


def attacks_inside(record: Record, ball: tuple[str, float], points: int) -> list[int]:
    """The places of the record's attacks that stay inside a ball and met at least ``points`` points."""
    counts = {text: cell.n for text, cell in record.last_cells().items()}
    return [
        place
        for place, attack in enumerate(record.attacks)
        if lies_inside(attack.norm, attack.eps, ball) and counts.get(attack.text, 0) >= points
    ]


def bracket_of(found: Certificate, record: Record, robust: NDArray[np.bool_] | None) -> Bracket:
    """The bracket of a certificate; ``robust`` (A, n) are the outcomes after the last stage, if available.

    The upper end counts points that survive all attacks. Without outcomes it is the count of the strongest.
    """
    points, high = found.counts.points, found.counts.clean_correct
    inside = attacks_inside(record, (found.norm, found.eps), points)
    if robust is not None and len(robust) == len(record.attacks) and robust.shape[1] >= points:
        right = np.array(found.outcomes.clean)
        high = int((right & robust[inside, :points].all(axis=0)).sum())
    else:
        cells = record.last_cells()
        high = min([high, *(cells[record.attacks[place].text].robust for place in inside)])
    texts = [record.attacks[place].text for place in inside]
    return Bracket(found.ball, points, found.counts.certified, high, texts)


def is_bound(metric: str) -> bool:
    """Whether a metric is one of the two ends."""
    return metric.startswith((CERTIFIED, ATTACKED))


def balls_of(metrics: Iterable[str]) -> list[str]:
    """The balls that metrics give both ends of, in order."""
    return sorted({name.removeprefix(CERTIFIED) for name in metrics if name.startswith(CERTIFIED)})


def ball_of(column: str) -> str | None:
    """The ball in the name of a column ``bounds.BALL``; None for other columns."""
    return column.removeprefix(BOUNDS) if column.startswith(BOUNDS) else None


def spoken_ball(ball: str) -> str:
    """A ball for display: ``linf 0.2``."""
    return ball.replace("-", " ", 1)


def spoken_bound(metric: str) -> str:
    """One end for display: ``certified linf 0.2``."""
    end, _, ball = metric.partition(".")
    return f"{end} {spoken_ball(ball)}"
