"""Metrics: pure functions of the stage × attack matrix.

``R`` is a float array of shape (T+1, A): ``R[t, j]`` is the share of all test points that are classified
correctly, clean and after attack *j*, once stage *t* is trained. Row 0 is the plain pretrained classifier.
For the continual metrics the columns are attacks 1..T in the order of the sequence, so A = T; formulas count
attacks from 1. A metric that is undefined (T = 1, no attacks), or that needs a cell which was not measured
(NaN), is None. No function changes its input.
"""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

METRICS: Final = (
    "average_robust_accuracy",
    "clean_accuracy",
    "worst_case_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "unseen_accuracy",
    "unseen_gap",
)
COMPETITIVENESS: Final = (
    "competitiveness_average",
    "competitiveness_worst",
    "competitiveness_measured",
)
"""The metrics relative to a reference table; the last is the share of its terms that were measured."""
REGIMES: Final = ("continual", "joint", "meta")


def _matrix(R: ArrayLike) -> Floats:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] < 2:
        raise ValueError(f"R must have shape (T+1, A) with T >= 1, not {matrix.shape}")
    return matrix


def _continual(R: ArrayLike) -> Floats:
    matrix = _matrix(R)
    if matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(f"a continual R has shape (T+1, T), one column a stage, not {matrix.shape}")
    return matrix


def _mean(values: Floats) -> float | None:
    if values.size == 0 or bool(np.isnan(values).any()):
        return None
    return float(values.mean())


def average_robust_accuracy(R: ArrayLike) -> float | None:
    """mean_j R[T, j]: the mean of the last row, for R of shape (T+1, A)."""
    return _mean(_matrix(R)[-1])


def backward_transfer(R: ArrayLike) -> float | None:
    """mean_{j<T} (R[T, j] − R[j, j]), for R of shape (T+1, T); None when T = 1.

    The change of each attack's accuracy since its own stage; negative if later stages lowered it.
    """
    matrix = _continual(R)
    return _mean(matrix[-1, :-1] - np.diagonal(matrix[1:])[:-1])


def forgetting(R: ArrayLike) -> float | None:
    """mean_{j<T} (max_{1≤t<T} R[t, j] − R[T, j]), for R of shape (T+1, T); None when T = 1.

    Chaudhry's form (arXiv:1801.10112): the best of *all* earlier stages minus the last, so it is
    negative if the last stage is the best. Other tools call first minus last "forgetting"; that is
    −backward_transfer here. Row 0 is not a stage and never the maximum.
    """
    matrix = _continual(R)
    if matrix.shape[1] < 2:
        return None
    return _mean(matrix[1:-1, :-1].max(axis=0) - matrix[-1, :-1])


def forward_transfer(R: ArrayLike) -> float | None:
    """mean_{j≥2} (R[j−1, j] − R[0, j]), for R of shape (T+1, T); None when T = 1.

    The baseline is row 0, the pretrained classifier, not a random initialisation.
    """
    matrix = _continual(R)
    return _mean(np.diagonal(matrix)[1:] - matrix[0, 1:])


def unseen_accuracy(R_unseen: ArrayLike) -> float | None:
    """mean_u R[T, u] over attacks kept out of training, for R_unseen of shape (T+1, U); None when U = 0."""
    return _mean(_matrix(R_unseen)[-1])


def unseen_gap(R: ArrayLike, R_unseen: ArrayLike) -> float | None:
    """Average robust accuracy − unseen accuracy; None if either is None."""
    average, unseen = average_robust_accuracy(R), unseen_accuracy(R_unseen)
    return None if average is None or unseen is None else average - unseen


def clean_accuracy(clean: ArrayLike) -> float | None:
    """clean[T]: accuracy without attack after the last stage, for ``clean`` of shape (T+1,)."""
    column = np.asarray(clean, dtype=np.float64)
    if column.ndim != 1 or column.shape[0] < 2:
        raise ValueError(f"clean must have shape (T+1,) with T >= 1, not {column.shape}")
    return _mean(column[-1:])


def worst_case_accuracy(robust: ArrayLike, counts: Sequence[int] | None = None) -> float | None:
    """The share of test points that survive every attack: a union per point, not a minimum of means.

    ``robust`` is boolean, shape (A, n): correct clean and after attack *a*. Attack *a* was measured only on
    the first ``counts[a]`` points; the union is then taken over the points that all attacks share, the first
    ``min(counts)``. None without attacks or shared points.
    """
    outcomes = np.asarray(robust)
    if outcomes.ndim != 2 or outcomes.dtype != np.bool_:
        raise ValueError(
            f"robust must be boolean with shape (A, n), not {outcomes.dtype} with {outcomes.shape}"
        )
    attacks, n = outcomes.shape
    if counts is not None and (len(counts) != attacks or any(not 0 <= count <= n for count in counts)):
        raise ValueError(f"counts must hold {attacks} numbers between 0 and {n}, not {list(counts)}")
    shared = n if counts is None else min(counts, default=n)
    if attacks == 0 or shared == 0:
        return None
    return float(outcomes[:, :shared].all(axis=0).mean())


def competitiveness_ratio(
    accuracies: Mapping[tuple[str, float], float],
    reference: Mapping[tuple[str, float], float],
    required: Set[str] | None = None,
) -> tuple[float | None, float | None, int, int]:
    """Accuracy relative to the best known, over (attack, eps) pairs (arXiv:2302.10980).

    ratio(a, ε) = accuracies[a, ε] / reference[a, ε], for pairs in both tables with exactly equal ε.
    Average: mean over attacks of the mean over *that attack's own* measured ε. Worst: min over pairs.
    The code published with the paper never resets its count between attacks, so a model equal to the
    reference everywhere scores below 1 there; here it scores 1. Ratios above 1 (better than the best known)
    are kept.

    Returns:
        (average, worst, pairs measured, pairs in the reference). Average and worst are None if no pair was
        measured, or if an attack of ``required`` (default: all of the reference) has no measured pair.

    Raises:
        ValueError: a reference accuracy is not positive.
    """
    ratios: dict[str, list[float]] = {}
    for (attack, eps), best in reference.items():
        if not best > 0:
            raise ValueError(f"reference accuracy of {attack!r} at eps {eps} must be positive, not {best}")
        accuracy = accuracies.get((attack, eps), math.nan)
        if not math.isnan(accuracy):
            ratios.setdefault(attack, []).append(accuracy / best)
    measured, total = sum(map(len, ratios.values())), len(reference)
    needed = {attack for attack, _ in reference} if required is None else required
    if not ratios or not needed <= ratios.keys():
        return None, None, measured, total
    per_attack = [math.fsum(values) / len(values) for values in ratios.values()]
    return math.fsum(per_attack) / len(per_attack), min(map(min, ratios.values())), measured, total


def summarise(
    R: ArrayLike,
    clean: ArrayLike,
    *,
    regime: str,
    R_unseen: ArrayLike | None = None,
    robust: ArrayLike | None = None,
    counts: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """All metrics of a run by name (``METRICS``); None if one is undefined or was not measured.

    Args:
        R: (T+1, A) over the attacks of the sequence. ``joint`` and ``meta`` have one stage: (2, A).
        clean: (T+1,) clean accuracy.
        regime: ``continual``, ``joint`` or ``meta``; the last two have no transfer and no forgetting.
        R_unseen: (T+1, U) over unseen attacks.
        robust: boolean (A', n) outcomes of the last stage under every attack of the run.
        counts: see `worst_case_accuracy`.

    Raises:
        ValueError: an unknown regime, or a shape that does not fit it.
    """
    if regime not in REGIMES:
        raise ValueError(f"unknown regime {regime!r}: expected one of {', '.join(REGIMES)}")
    matrix = _matrix(R)
    continual = regime == "continual"
    if not continual and matrix.shape[0] != 2:
        raise ValueError(f"regime {regime!r} is one stage: R has shape (2, A), not {matrix.shape}")
    return {
        "average_robust_accuracy": average_robust_accuracy(matrix),
        "clean_accuracy": clean_accuracy(clean),
        "worst_case_accuracy": None if robust is None else worst_case_accuracy(robust, counts),
        "backward_transfer": backward_transfer(matrix) if continual else None,
        "forgetting": forgetting(matrix) if continual else None,
        "forward_transfer": forward_transfer(matrix) if continual else None,
        "unseen_accuracy": None if R_unseen is None else unseen_accuracy(R_unseen),
        "unseen_gap": None if R_unseen is None else unseen_gap(matrix, R_unseen),
    }
