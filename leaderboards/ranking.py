"""Leaderboard rows: records grouped over seeds and ranked where they can be compared."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from leaderboards.entries import Verdict
from leaderboards.errors import RecordError
from leaderboards.metrics import METRICS
from leaderboards.record import Record
from leaderboards.statistics import Summary, over_seeds

COSTS: Final = (
    "training_seconds",
    "training_forwards",
    "training_backwards",
    "evaluation_seconds",
    "parameters",
    "multiply_adds",
)
_SEVERITY: Final[dict[Verdict, int]] = {"ok": 0, "suspect": 1, "invalid": 2}


@dataclass(frozen=True)
class Row:
    """One defense under one set of conditions, over its seeds.

    ``rank`` counts from 1 within the row's comparison group (None: invalid, or not measured). ``verdict``
    is the worst of the seeds', ``flags`` the codes of all of them. ``metrics`` and ``cost`` are over
    seeds; a metric is None when a seed lacks it. ``runs`` holds record ids in the order of ``seeds``.
    """

    rank: int | None
    defense: str
    params: dict[str, Any]
    regime: str
    target_aware: bool
    verdict: Verdict
    flags: tuple[str, ...]
    dataset: str
    fingerprint: str
    model: str
    sequence: tuple[str, ...]
    training: tuple[str, ...]
    plan: dict[str, Any]
    pretrain: Any
    protocol: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    metrics: dict[str, Summary | None]
    cost: dict[str, Summary | None]

    @property
    def comparison(self) -> tuple[str, ...]:
        """Rows are comparable when these are equal: data fingerprint, sequence, model, protocol."""
        return (self.fingerprint, canonical(self.sequence), self.model, self.protocol)


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def rows(records: Iterable[Record], dataset: str | None = None) -> list[Row]:
    """Aggregate records over seeds and rank them.

    A group shares defense and parameters, sequence and its training knobs, regime, data fingerprint,
    model, train plan, pretraining and protocol; of two records of one group and seed the newest counts.
    Ranks are by average robust accuracy, within one data set × sequence × model × protocol, target-aware
    rows apart; equal values share a rank. Suspect rows rank below every ok one, invalid rows not at all.

    Raises:
        RecordError: no record is on ``dataset``, though there are records.
    """
    chosen = _on_dataset(list(records), dataset)
    groups: dict[str, dict[int, Record]] = {}
    for record in sorted(chosen, key=_age):
        groups.setdefault(_group(record), {})[record.config["seed"]] = record
    unranked = [_row(list(group.values())) for group in groups.values()]
    # One data set may go by two names (two folders, one content): the fingerprint decides, not the name.
    names = {row.fingerprint: row.dataset for row in sorted(unranked, key=lambda row: row.dataset)}
    return _ranked(sorted(unranked, key=lambda row: (names[row.fingerprint], *_order(row))))


def _on_dataset(records: list[Record], dataset: str | None) -> list[Record]:
    if dataset is None or not records:
        return records
    chosen = [record for record in records if record.config["dataset"] == dataset]
    if not chosen:
        known = sorted({record.config["dataset"] for record in records})
        raise RecordError(f"no records on data set {dataset!r}: there are records on {', '.join(known)}")
    return chosen


def _age(record: Record) -> tuple[datetime, str]:
    return datetime.fromisoformat(record.created), record.id


def _group(record: Record) -> str:
    config = record.config
    keys = ("defense", "params", "sequence", "training", "regime", "model", "plan", "pretrain")
    aware = bool(config.get("target_aware", False))
    fingerprint = record.environment["data"]["fingerprint"]
    return canonical([[config[key] for key in keys], aware, fingerprint, record.protocol])


def _row(records: Sequence[Record]) -> Row:
    """One row of records that differ in seed only."""
    records = sorted(records, key=lambda record: int(record.config["seed"]))
    first, config = records[0], records[0].config
    extra = sorted({name for record in records for name in record.metrics} - set(METRICS))
    model = config["model"]
    return Row(
        rank=None,
        defense=config["defense"],
        params=config["params"],
        regime=config["regime"],
        target_aware=bool(config.get("target_aware", False)),
        verdict=max((record.audit.verdict for record in records), key=_SEVERITY.__getitem__),
        flags=tuple(sorted({flag.code for record in records for flag in record.audit.flags})),
        dataset=config["dataset"],
        fingerprint=first.environment["data"]["fingerprint"],
        model=model if isinstance(model, str) else canonical(model),
        sequence=tuple(config["sequence"]),
        training=tuple(config["training"]),
        plan=config["plan"],
        pretrain=config["pretrain"],
        protocol=first.protocol,
        seeds=tuple(record.config["seed"] for record in records),
        runs=tuple(record.id for record in records),
        metrics=_summaries([*METRICS, *extra], records, lambda record, name: record.metrics.get(name)),
        cost=_summaries(COSTS, records, lambda record, name: float(getattr(record.cost, name))),
    )


def _summaries(
    names: Iterable[str], records: Sequence[Record], value: Callable[[Record, str], float | None]
) -> dict[str, Summary | None]:
    return {name: over_seeds([value(record, name) for record in records]) for name in names}


def _score(row: Row) -> float | None:
    summary = row.metrics["average_robust_accuracy"]
    return None if summary is None else summary.mean


def _order(row: Row) -> tuple[Any, ...]:
    score = _score(row)
    return (
        row.comparison,
        row.target_aware,
        _SEVERITY[row.verdict],
        score is None,
        -(score or 0.0),
        row.defense,
        canonical([row.regime, row.params, row.plan, row.training, row.pretrain]),
    )


def _ranked(ordered: Iterable[Row]) -> list[Row]:
    """Competition ranks (1, 1, 3) of rows in `_order`; a tie needs an equal score *and* an equal verdict."""
    placed: dict[tuple[Any, ...], int] = {}
    last: dict[tuple[Any, ...], tuple[tuple[Verdict, float], int]] = {}
    result: list[Row] = []
    for row in ordered:
        score = _score(row)
        if row.verdict == "invalid" or score is None:
            result.append(row)
            continue
        group = (row.comparison, row.target_aware)
        placed[group] = placed.get(group, 0) + 1
        standing, rank = last.get(group, (None, 0))
        if standing != (row.verdict, score):
            rank = placed[group]
        last[group] = ((row.verdict, score), rank)
        result.append(replace(row, rank=rank))
    return result
