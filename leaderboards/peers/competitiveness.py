"""The competitiveness ratio of runs: their accuracies relative to the best known (arXiv:2302.10980)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import fsum
from pathlib import Path
from typing import Any

from leaderboards.errors import RecordError
from leaderboards.peers.reference import Reference, Term
from leaderboards.records.record import Record
from leaderboards.records.store import read_record
from leaderboards.statistics.metrics import COMPETITIVENESS, competitiveness_ratio
from leaderboards.statistics.naming import model_name
from leaderboards.statistics.results import Result


@dataclass(frozen=True)
class Ratio:
    """A run's accuracy relative to the best known; 1 means equal, more is better.

    Attributes:
        average: the mean over attacks of each attack's mean over its measured eps; None if ``reason`` is set.
        worst: the lowest ratio of all terms; None if ``reason`` is set.
        measured: how many terms of the table the run measured.
        total: how many terms the table has for the chosen attacks.
        attacks: the mean of each chosen attack; None if none of its terms was measured.
        reason: why there is no ratio; empty if there is one.
    """

    average: float | None
    worst: float | None
    measured: int
    total: int
    attacks: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""

    @property
    def share(self) -> float:
        """measured / total."""
        return self.measured / self.total


def competitiveness(
    record: Record, reference: Reference, *, attacks: Collection[str] | None = None, clean: bool = False
) -> Ratio:
    """The competitiveness ratio of a run after its last stage.

    A term counts only if the run measured exactly its attack at exactly its eps (`Term.measured_by`); if
    several attacks of the run match, the lowest accuracy counts. A term whose best accuracy is 0 never
    counts, because it cannot be divided by. There is no ratio if an attack has no measured term, or if the
    run's data or (if the table names one) its model is not the table's.

    Args:
        record: the run.
        reference: the table.
        attacks: the attacks of the table to average over, instead of all that it requires.
        clean: also count clean accuracy as one more strength of every attack, eps 0, as the leaderboard of
            the paper does. On our leaderboards, clean accuracy is a column of its own.

    Raises:
        RecordError: ``attacks`` is empty or names an attack that the table does not have.
    """
    chosen = chosen_attacks(reference, attacks)
    terms = [term for term in reference.terms if term.attack in chosen]
    data, config = record.environment["data"], record.config
    if reason := _elsewhere(reference, config["dataset"], data["fingerprint"], model_name(config)):
        return Ratio(None, None, 0, len(terms), dict.fromkeys(chosen), reason)
    return _ratio(record, chosen, terms, reference.clean if clean else None)


def _ratio(record: Record, chosen: Sequence[str], terms: Sequence[Term], clean: float | None) -> Ratio:
    """The ratio over ``terms``, the terms of the ``chosen`` attacks; ``clean`` is the best clean accuracy."""
    best = {(term.attack, term.eps): term.accuracy for term in terms if term.accuracy > 0}
    reached = {key: value for key, value in _measured(record, terms).items() if key in best}
    measured = len(reached)
    if clean:
        own = float(record.clean_column()[-1])
        for attack in {attack for attack, _ in reached}:
            best[attack, 0.0], reached[attack, 0.0] = clean, own
    average, worst, _, _ = competitiveness_ratio(reached, best, set(chosen))
    each: dict[str, list[float]] = {attack: [] for attack in chosen}
    for key, value in reached.items():
        each[key[0]].append(value / best[key])
    alone = {attack: fsum(found) / len(found) if found else None for attack, found in each.items()}
    missing = [attack for attack, found in each.items() if not found]
    reason = f"not measured at any of its eps: {', '.join(missing)}" if missing else ""
    return Ratio(average, worst, measured, len(terms), alone, reason)


def chosen_attacks(reference: Reference, attacks: Collection[str] | None) -> list[str]:
    """The attacks that a ratio averages over: ``attacks``, or else those that the table requires.

    Raises:
        RecordError: one is not in the table, or none is given.
    """
    if attacks is None:
        return list(dict.fromkeys(reference.required))
    chosen = list(dict.fromkeys(name.strip() for name in attacks))
    for name in chosen:
        if name not in reference.attacks:
            near = get_close_matches(name, reference.attacks, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(reference.attacks)}"
            raise RecordError(f"the reference has no attack {name!r}: {hint}")
    if not chosen:
        raise RecordError("no attack is chosen for the reference: name at least one of its attacks")
    return chosen


def with_competitiveness(
    results: Iterable[Result], reference: Reference, *, attacks: Collection[str] | None = None
) -> tuple[list[Result], list[str]]:
    """Results with the metrics `COMPETITIVENESS`, and a line for each reason why some have no ratio.

    A record is read only if the table covers its data and model.

    Raises:
        RecordError: see `competitiveness`, or a record cannot be read.
    """
    chosen = chosen_attacks(reference, attacks)
    terms = [term for term in reference.terms if term.attack in chosen]
    found, reasons = list[Result](), dict[str, int]()
    for result in results:
        shared = result.conditions
        reason = _elsewhere(reference, result.dataset, shared.fingerprint, shared.model)
        if reason:
            ratio = Ratio(None, None, 0, len(terms), reason=reason)
        else:
            ratio = _ratio(read_record(Path(result.directory)), chosen, terms, None)
        values = (ratio.average, ratio.worst, ratio.share)
        metrics = result.metrics | dict(zip(COMPETITIVENESS, values, strict=True))
        found.append(replace(result, metrics=metrics))
        if ratio.reason:
            line = f"{ratio.reason} ({ratio.measured} of {ratio.total} terms measured)"
            reasons[line] = reasons.get(line, 0) + 1
    runs = {line: f"{count} run" if count == 1 else f"{count} runs" for line, count in reasons.items()}
    return found, [f"no competitiveness ratio for {runs[line]}: {line}" for line in reasons]


def _elsewhere(reference: Reference, dataset: str, fingerprint: str, model: Any) -> str:
    """Why a table does not cover this data and model; empty if it does."""
    if reference.fingerprint is None:
        if reference.dataset != dataset:
            return f"the reference is for {reference.dataset}, not {dataset}"
    elif reference.fingerprint != fingerprint:
        return f"the reference is for data other than this {dataset}"
    if reference.model is not None and reference.model != model:
        return f"the reference is for the model {reference.model}, not {model}"
    return ""


def _measured(record: Record, terms: Sequence[Term]) -> dict[tuple[str, float], float]:
    reached: dict[tuple[str, float], float] = {}
    cells = record.last_cells()
    for entry in record.attacks:
        for term in terms if entry.text in cells else ():
            if term.measured_by(entry):
                key = (term.attack, term.eps)
                reached[key] = min(reached.get(key, 1.0), cells[entry.text].accuracy)
    return reached
