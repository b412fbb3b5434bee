"""Signs of false robustness in what a run measured; each flag carries its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from advbench.evaluate import Row
from attacks_pool import Attack
from leaderboards import Audit, Flag

LEAST_DIFFERENCE = 0.05
LARGEST_P = 0.01
CHECKS = (
    "nan-logits",
    "invalid-examples",
    "changed-model",
    "stochastic",
    "single-step-beats-iterative",
    "black-box-beats-white-box",
)
INVALIDATING = ("nan-logits",)


def audit(rows: Sequence[Row], attacks: Sequence[tuple[Attack, int]], *, stochastic: bool) -> Audit:
    """The verdict over a run: ``invalid`` after NaN logits, ``suspect`` after any other flag, else ``ok``.

    Comparisons look at the final row, and flag only a difference of at least 5 points with a paired
    p below 0.01 (exact McNemar test on the points that both attacks saw).
    """
    flags = [*_faults(rows), *_comparisons(rows[-1], attacks)]
    if stochastic:
        message = "predictions are random: single draws were judged, so these numbers are not comparable"
        flags.append(Flag(code="stochastic", message=message, evidence={}))
    codes = {flag.code for flag in flags}
    verdict = "invalid" if codes & set(INVALIDATING) else "suspect" if codes else "ok"
    return Audit.model_validate({"verdict": verdict, "flags": flags, "checks": list(CHECKS)})


def _faults(rows: Sequence[Row]) -> Iterator[Flag]:
    for row in rows:
        if row.not_a_number:
            message = f"{row.not_a_number} predictions after stage {row.stage} are not numbers"
            yield Flag(
                code="nan-logits", message=message, evidence={"stage": row.stage, "count": row.not_a_number}
            )
        for cell in row.cells:
            if cell.invalid:
                message = f"{cell.invalid} points of {cell.attack} broke its bound after stage {row.stage}"
                evidence = {"stage": row.stage, "attack": cell.attack, "count": cell.invalid}
                yield Flag(code="invalid-examples", message=message, evidence=evidence)
        for attack, changes in row.changed.items():
            message = f"{attack} changed the model that it searched: {changes[0]}; the model was put back"
            evidence = {"stage": row.stage, "attack": attack, "changes": changes[:10]}
            yield Flag(code="changed-model", message=message, evidence=evidence)


def _comparisons(row: Row, attacks: Sequence[tuple[Attack, int]]) -> Iterator[Flag]:
    """Weak attacks that fool more points than the strong ones of the same norm, at no larger budget."""
    for code, weak, strong in (
        ("single-step-beats-iterative", _is_single_step, _is_iterative),
        ("black-box-beats-white-box", _is_black_box, _is_iterative),
    ):
        for index, (attack, points) in enumerate(attacks):
            rivals = [
                (other, min(points, count))
                for other, (rival, count) in enumerate(attacks)
                if strong(rival) and rival.info.norm == attack.info.norm and rival.eps >= attack.eps
            ]
            if not weak(attack) or not rivals:
                continue
            best, shared = min(rivals, key=lambda pair: row.robust[pair[0], : pair[1]].mean())
            flag = _compare(code, attack, attacks[best][0], row.robust[index], row.robust[best], shared)
            if flag is not None:
                yield flag


def _compare(
    code: str,
    weak: Attack,
    strong: Attack,
    weak_robust: NDArray[np.bool_],
    strong_robust: NDArray[np.bool_],
    points: int,
) -> Flag | None:
    left, right = weak_robust[:points], strong_robust[:points]
    only_weak, only_strong = int((~left & right).sum()), int((left & ~right).sum())
    difference = (only_weak - only_strong) / points
    if difference < LEAST_DIFFERENCE:
        return None
    p = float(binomtest(only_weak, only_weak + only_strong, alternative="greater").pvalue)
    if p >= LARGEST_P:
        return None
    message = f"{weak.name} leaves {100 * difference:.1f} points less than {strong.name}, which is stronger"
    evidence = {
        "weak": weak.text,
        "strong": strong.text,
        "points": points,
        "fooled_by_weak_only": only_weak,
        "fooled_by_strong_only": only_strong,
        "p": p,
    }
    return Flag(code=code, message=message, evidence=evidence)


def _is_single_step(attack: Attack) -> bool:
    return attack.info.family == "single-step"


def _is_black_box(attack: Attack) -> bool:
    return attack.info.access == "black-box"


def _is_iterative(attack: Attack) -> bool:
    return attack.info.access == "white-box" and not _is_single_step(attack)
