"""Computes the metrics of a run's record from its outcomes."""

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
        clean: (T+1, n) whether each point is classified correctly when clean.
        robust: (T+1, A, n) whether it is correct clean and after the attack; seen attacks first, then unseen.
        regime: ``continual``, ``joint`` or ``meta``.
        seen, unseen: how many attacks of each kind there are.
        points: how many points each attack was measured on.
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
    """``transfer_accuracy``: the mean accuracy under the sequence's attacks, crafted on a surrogate.

    It is defined only if all of them were measured. ``seen`` are the texts of the sequence.
    """
    found = {cell.attack: cell.accuracy for cell in probes if cell.threat.access == "transfer"}
    if not seen or any(text not in found for text in seen):
        return {}
    return {"transfer_accuracy": float(np.mean([found[text] for text in seen]))}


def eval_metrics(clean: Bools, robust: Bools, counts: Sequence[int]) -> dict[str, float | None]:
    """The metrics that need no sequence, from outcomes clean (n,) and robust (A, n).

    The average is over all attacks, None without any. ``counts`` holds how many points each attack was
    measured on.
    """
    measured: dict[str, float | None] = dict.fromkeys(METRICS)
    if len(counts):
        measured["average_robust_accuracy"] = float((robust.sum(1) / np.array(counts)).mean())
    measured["clean_accuracy"] = float(clean.mean())
    measured["worst_case_accuracy"] = worst_case_accuracy(robust, counts)
    return measured
