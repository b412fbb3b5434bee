"""The metrics of a run from its outcomes, as they are written to its record."""

from collections.abc import Sequence

import numpy as np

from leaderboards.records.entries import Cell
from leaderboards.records.store import Bools
from leaderboards.statistics.metrics import METRICS, summarise, worst_case_accuracy


def metrics_of(
    clean: Bools,
    robust: Bools,
    *,
    regime: str,
    seen: int,
    unseen: int,
    points: Sequence[int],
) -> dict[str, float | None]:
    """The metrics that follow from outcomes.

    Args:
        clean: (T+1, n) right clean.
        robust: (T+1, A, n) right clean and after the attack; seen attacks first, then unseen ones.
        regime: ``continual``, ``joint`` or ``meta``.
        seen, unseen: how many attacks of each kind there are.
        points: the points that each attack was measured on.
    """
    accuracy = robust.sum(2) / np.array(points)
    return summarise(
        accuracy[:, :seen],
        clean.mean(1),
        regime=regime,
        R_unseen=accuracy[:, seen : seen + unseen] if unseen else None,
        robust=robust[-1],
        counts=points,
    )


def transfer_metric(probes: Sequence[Cell], seen: Sequence[str]) -> dict[str, float | None]:
    """``transfer_accuracy``: the mean over the sequence of what survives it when crafted on a surrogate.

    Only where all of that was measured. ``seen`` are the texts of the sequence.
    """
    found = {cell.attack: cell.accuracy for cell in probes if cell.threat.access == "transfer"}
    if not seen or any(text not in found for text in seen):
        return {}
    return {"transfer_accuracy": float(np.mean([found[text] for text in seen]))}


def eval_metrics(clean: Bools, robust: Bools, counts: Sequence[int]) -> dict[str, float | None]:
    """Those that need no sequence, of clean (n,) and robust (A, n) outcomes; the average is over all attacks.

    ``counts`` are the points that each attack was measured on.
    """
    measured: dict[str, float | None] = dict.fromkeys(METRICS)
    measured["average_robust_accuracy"] = float((robust.sum(1) / np.array(counts)).mean())
    measured["clean_accuracy"] = float(clean.mean())
    measured["worst_case_accuracy"] = worst_case_accuracy(robust, counts)
    return measured
