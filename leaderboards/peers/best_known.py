"""Builds a reference table from finished runs: the best accuracy that any reached against each attack."""

from collections.abc import Iterable, Sequence
from typing import Any

from leaderboards.peers.reference import FORMAT, Reference, Term
from leaderboards.records.record import Record
from leaderboards.statistics.naming import model_name


def best_known(
    records: Iterable[Record], wanted: Sequence[tuple[str, float, str, int]], *, fingerprint: str, model: str
) -> tuple[list[Term], list[tuple[str, float]]]:
    """The best accuracy that runs reached against each attack alone, and the attacks without any such run.

    A run counts if it is on this data and model, has audit verdict ``ok``, is not target-aware, and measured
    the attack after its last stage on the same number of points. The result is a maximum over runs on test
    data: a standard to compare with, not an estimate.

    Args:
        records: finished runs.
        wanted: name, eps, canonical text and number of points of each attack.
        fingerprint: the fingerprint of the data.
        model: the architecture, with its further arguments.
    """
    usable = [
        (record.last_cells(), record)
        for record in records
        if record.environment["data"]["fingerprint"] == fingerprint
        and model_name(record.config) == model
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
        # Ties go to the first run by name, so that the table does not depend on directory order.
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
    """A reference table with these terms, which requires all of their attacks."""
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
    keys = ("defense", "params", "regime", "sequence", "seed")
    return {"run": record.id, "created": record.created, **{key: record.config[key] for key in keys}}
