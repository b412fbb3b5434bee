"""Runs that a leaderboard lists but does not rank, such as runs without outcomes or with equal weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from leaderboards.audits.contradictions import contradiction_of
from leaderboards.boards.row import Refusal
from leaderboards.errors import RecordError
from leaderboards.records.store import Bools, read_record
from leaderboards.records.trust import Trust, refutation_of
from leaderboards.statistics.results import Result
from leaderboards.statistics.standing import Standing

LEAST_ALIKE: Final = 50
"""An attack must leave and fool at least this many points for equal outcomes to imply equal models.

In 1,311 pairs of published runs that differ only in seed, at least 6 points differed."""


@dataclass(frozen=True)
class Refused:
    """Runs, by their ``places`` in a row, that become a row of their own, and why: a word and a line."""

    places: list[int]
    why: Refusal
    line: str


def refusals(standing: Standing, key: str, trust: Callable[[str], Trust]) -> list[Refused]:
    """The runs of a row that may not be ranked.

    A run is refused if ``advbench verify`` refuted it, if its outcomes are missing or contradict its record
    (see `leaderboards.audits.contradictions`), or if another run of the row has the same weights under
    another seed. Nothing shows which of the two training seeds gave such weights, so both are refused, unless
    retraining has shown it. A model that was evaluated under several seeds, without being trained here,
    counts once.

    Args:
        standing: the runs of a row, which differ in seed, with their outcomes as far as they can be read.
            Records alone, without a directory, are not refused for missing outcomes.
        key: the metric that rows are ranked by.
        trust: returns the trust of a run's directory, see `trust_of`.
    """
    results = standing.results
    trusted = [trust(one.directory) for one in results]
    found: list[Refused] = []
    kept = []
    for place, result in enumerate(results):
        if trusted[place] != "refuted":
            kept.append(place)
            continue
        line = f"run {result.id} was refuted: {refutation_of(Path(result.directory))}"
        found.append(Refused([place], "refuted", line))
    unseen = [place for place in kept if trusted[place] == "self-reported"]
    contradicted = {place: line for place in unseen if (line := _against(results[place]))}
    found += [Refused([place], "outcomes", line) for place, line in contradicted.items()]
    kept = [place for place in kept if place not in contradicted]
    standing.terms(key)
    if standing.note and (faults := _without_outcomes(results, kept, key)):
        found.append(Refused(list(faults), "outcomes", next(iter(faults.values()))))
        kept = [place for place in kept if place not in faults]
    for place, other in _alike(standing, kept).items():
        if trusted[place] != "retrained":
            # Each becomes a row of its own: seeds with equal weights do not count.
            found.append(Refused([place], "weights", _same(results[place], results[other])))
    return found


def _against(result: Result) -> str:
    """How outcomes contradict an unverified record; empty if they are missing or consistent."""
    if not result.directory:
        return ""
    try:
        if result.cache is not None:
            line = result.cache.contradiction(result.directory)
        else:
            line = contradiction_of(Path(result.directory), read_record(Path(result.directory)))
    except RecordError:
        return ""
    return f"run {result.id} contradicts its own outcomes: {line}" if line else ""


def _without_outcomes(results: Sequence[Result], kept: Sequence[int], key: str) -> dict[int, str]:
    """Runs whose outcomes are missing, damaged, from another run, or inconsistent with the other seeds."""
    faults = {place: _fault([results[place]], key) for place in kept if results[place].directory}
    sound = [place for place, fault in faults.items() if not fault]
    together = _fault([results[place] for place in sound], key) if sound else ""
    return {place: reason for place, fault in faults.items() if (reason := fault or together)}


def _fault(results: Sequence[Result], key: str) -> str:
    standing = Standing.of(results)
    standing.terms(key)
    return standing.note


def _alike(standing: Standing, places: Sequence[int]) -> dict[int, int]:
    """Maps each run that has the weights of another seed to that other run."""
    results, stored = standing.results, standing.outcomes
    found: dict[int, int] = {}
    outcomes = {
        place: _last(results[place]) if stored is None else stored.robust[place, -1]
        for place in (places if len(places) > 1 else [])
    }
    for number, second in enumerate(places):
        for first in places[:number]:
            same = bool(results[first].weights) and results[first].weights == results[second].weights
            if same or _stand_and_fall(results[first].counts, outcomes[first], outcomes[second]):
                if results[first].conditions.regime != "eval":
                    found.setdefault(first, second)
                found.setdefault(second, first)
    return found


def same_model(one: Result, other: Result) -> bool:
    """Whether two runs have the same weights: by their digests or, if these were disguised, by outcomes."""
    same = bool(one.weights) and one.weights == other.weights
    return same or (one.counts == other.counts and _stand_and_fall(one.counts, _last(one), _last(other)))


def _last(result: Result) -> Bools | None:
    """(A, n) outcomes of the last stage; None if there are none."""
    if not result.directory:
        return None
    try:
        robust = result.outcomes()[1]
    except RecordError:
        return None
    return robust[-1] if len(robust) else None


def _stand_and_fall(counts: Sequence[int], left: Bools | None, right: Bools | None) -> bool:
    """Whether two models have equal outcomes on every point, for an attack that fools some and leaves some.

    Models of two seeds do not.
    """
    if left is None or right is None or left.shape != right.shape or len(left) != len(counts):
        return False
    robust = left.sum(axis=1)
    contested = np.minimum(robust, np.array(counts) - robust) >= LEAST_ALIKE
    return bool((contested & (left == right).all(axis=1)).any())


def _same(one: Result, other: Result) -> str:
    what = f"run {one.id} of seed {one.seed} and run {other.id} of seed {other.seed} are one model"
    if one.conditions.regime == "eval":
        return f"{what}: it counts once, whatever the seeds of its evaluations"
    return f"{what}: two training seeds cannot give the same weights (advbench verify --retrain decides)"
