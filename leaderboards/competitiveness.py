"""The competitiveness ratio of runs: their accuracies relative to the best known (arXiv:2302.10980)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from leaderboards.entries import Cell
from leaderboards.errors import RecordError
from leaderboards.metrics import COMPETITIVENESS, competitiveness_ratio
from leaderboards.record import Record
from leaderboards.reference import FORMAT, Reference, Term
from leaderboards.results import Result
from leaderboards.store import read_record


@dataclass(frozen=True)
class Ratio:
    """How near a run comes to the best known; 1 is level with it, more is better.

    Attributes:
        average: mean over attacks of each attack's mean over its own measured eps; None with ``reason``.
        worst: the lowest ratio of all terms; None with ``reason``.
        measured: how many terms of the table the run measured.
        total: how many there are, of the attacks that the ratio is over.
        attacks: each of these attacks' own mean; None where no term of it was measured.
        reason: why there is no ratio; empty where there is one.
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
    """The ratio of a run after its last stage.

    A term counts only where the run measured that very attack at exactly its eps (`Term.measured_by`); of
    several attacks that do, the lowest accuracy. A best accuracy of 0 cannot be divided by: such a term is
    never measured. There is no ratio where an attack has no measured term, or on other data or (where the
    table names one) another model.

    Args:
        record: the run.
        reference: the table.
        attacks: the attacks of the table that the ratio is over, instead of all that it requires.
        clean: also count clean accuracy as one more strength of every attack, eps 0, as the leaderboard of
            the paper does. Here clean accuracy is a column of its own.

    Raises:
        RecordError: ``attacks`` names one that the table does not have, or none.
    """
    chosen = chosen_attacks(reference, attacks)
    terms = [term for term in reference.terms if term.attack in chosen]
    data, config = record.environment["data"], record.config
    if reason := _elsewhere(reference, config["dataset"], data["fingerprint"], config["model"]):
        return Ratio(None, None, 0, len(terms), dict.fromkeys(chosen), reason)
    best = {(term.attack, term.eps): term.accuracy for term in terms if term.accuracy > 0}
    reached = _measured(record, [term for term in terms if term.accuracy > 0])
    measured = len(reached)
    if clean and reference.clean:
        own = float(record.clean_column()[-1])
        for attack in {attack for attack, _ in reached}:
            best[attack, 0.0], reached[attack, 0.0] = reference.clean, own
    average, worst, _, _ = competitiveness_ratio(reached, best, set(chosen))
    each = {attack: _alone(attack, reached, best) for attack in chosen}
    missing = [attack for attack, value in each.items() if value is None]
    reason = f"not measured at any of its eps: {', '.join(missing)}" if missing else ""
    return Ratio(average, worst, measured, len(terms), each, reason)


def chosen_attacks(reference: Reference, attacks: Collection[str] | None) -> list[str]:
    """The attacks that a ratio is over: those given, else those that the table requires.

    Raises:
        RecordError: one is not in the table, or there are none.
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
        raise RecordError("the reference is to be over no attack: name some of its own")
    return chosen


def with_competitiveness(
    results: Iterable[Result], reference: Reference, *, attacks: Collection[str] | None = None
) -> tuple[list[Result], list[str]]:
    """Results with the metrics `COMPETITIVENESS`, and a line for each reason why some have no ratio.

    A record is read only where the table is about its data and model.

    Raises:
        RecordError: see `competitiveness`, or a record cannot be read.
    """
    chosen = chosen_attacks(reference, attacks)
    total = sum(term.attack in chosen for term in reference.terms)
    found, reasons = list[Result](), dict[str, int]()
    for result in results:
        shared = result.conditions
        reason = _elsewhere(reference, result.dataset, shared.fingerprint, shared.model)
        if reason:
            ratio = Ratio(None, None, 0, total, reason=reason)
        else:
            ratio = competitiveness(read_record(Path(result.directory)), reference, attacks=chosen)
        values = (ratio.average, ratio.worst, ratio.share)
        metrics = result.metrics | dict(zip(COMPETITIVENESS, values, strict=True))
        found.append(replace(result, metrics=metrics))
        if ratio.reason:
            line = f"{ratio.reason} ({ratio.measured} of {ratio.total} terms measured)"
            reasons[line] = reasons.get(line, 0) + 1
    runs = {line: f"{count} run" if count == 1 else f"{count} runs" for line, count in reasons.items()}
    return found, [f"no competitiveness ratio for {runs[line]}: {line}" for line in reasons]


def best_known(
    records: Iterable[Record], wanted: Sequence[tuple[str, float, str, int]], *, fingerprint: str, model: str
) -> tuple[list[Term], list[tuple[str, float]]]:
    """The best that runs reached against each attack alone, and what no run counts for.

    Only runs on this data and model count, with audit verdict ``ok`` and not target-aware, that measured the
    attack after their last stage on as many points. It is a maximum over runs on test data: a bar to measure
    against, not an estimate.

    Args:
        records: finished runs.
        wanted: name, eps, canonical text and number of points of each attack.
        fingerprint: of the data.
        model: the architecture.
    """
    usable = [
        (_last(record), record)
        for record in records
        if record.environment["data"]["fingerprint"] == fingerprint
        and record.config["model"] == model
        and record.audit.verdict == "ok"
        and not record.config.get("target_aware", False)
    ]
    terms, missing = [], []
    for name, eps, text, points in wanted:
        cells = [
            (found[text], record) for found, record in usable if text in found and found[text].n == points
        ]
        if not cells:
            missing.append((name, eps))
            continue
        # Of equals the first by name, so that the table does not depend on the order of a directory.
        cell, record = min(cells, key=lambda pair: (-pair[0].robust, pair[1].id))
        terms.append(
            Term(
                attack=name,
                eps=eps,
                text=text,
                accuracy=cell.accuracy,
                robust=cell.robust,
                n=cell.n,
                source=_source(record),
            )
        )
    return terms, missing


def make_reference(terms: Sequence[Term], *, dataset: str, fingerprint: str, model: str) -> Reference:
    """A reference of these terms that requires all of their attacks."""
    required = list(dict.fromkeys(term.attack for term in terms))
    return Reference(
        reference=FORMAT,
        dataset=dataset,
        fingerprint=fingerprint,
        model=model,
        required=required,
        terms=list(terms),
    )


def _source(record: Record) -> dict[str, Any]:
    config = record.config
    return {
        "run": record.id,
        "created": record.created,
        "defense": config["defense"],
        "params": config["params"],
        "regime": config["regime"],
        "sequence": config["sequence"],
        "seed": config["seed"],
    }


def _last(record: Record) -> dict[str, Cell]:
    """The cells after the last stage, by attack."""
    last = max((cell.stage for cell in record.cells), default=0)
    return {cell.attack: cell for cell in record.cells if cell.stage == last}


def _elsewhere(reference: Reference, dataset: str, fingerprint: str, model: Any) -> str:
    """Why a table is not about this data and model; empty where it is."""
    if reference.fingerprint is None:
        if reference.dataset != dataset:
            return f"the reference is for {reference.dataset}, not {dataset}"
    elif reference.fingerprint != fingerprint:
        return f"the reference is for other data than this {dataset}"
    if reference.model is not None and reference.model != model:
        return f"the reference is for the model {reference.model}, not {model}"
    return ""


def _measured(record: Record, terms: Sequence[Term]) -> dict[tuple[str, float], float]:
    reached: dict[tuple[str, float], float] = {}
    cells = _last(record)
    for entry in record.attacks:
        for term in terms if entry.text in cells else ():
            if term.measured_by(entry):
                key = (term.attack, term.eps)
                reached[key] = min(reached.get(key, 1.0), cells[entry.text].accuracy)
    return reached


def _alone(
    attack: str, reached: Mapping[tuple[str, float], float], best: Mapping[tuple[str, float], float]
) -> float | None:
    """One attack's own mean; None where it has no measured term."""
    own = {key: value for key, value in best.items() if key[0] == attack}
    return competitiveness_ratio(reached, own)[0]
