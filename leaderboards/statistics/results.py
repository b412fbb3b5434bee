"""The parts of a run that a leaderboard needs: a record without cells, stages and the audit's evidence."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from leaderboards.errors import RecordError
from leaderboards.records.checksums import listed_files
from leaderboards.records.entries import Verdict
from leaderboards.records.layout import OUTCOMES
from leaderboards.records.record import Record
from leaderboards.records.store import Bools, read_outcomes
from leaderboards.statistics.naming import model_name
from leaderboards.statistics.points import Layout
from leaderboards.statistics.reported import reported
from leaderboards.statistics.under import attack_of

COSTS: Final = (
    "training_seconds",
    "training_forwards",
    "training_backwards",
    "evaluation_seconds",
    "parameters",
    "multiply_adds",
)


class Keeper(Protocol):
    """A cache of outcomes: see `leaderboards.boards.cache`."""

    def outcomes(self, directory: str) -> tuple[Bools, Bools]:
        """The outcomes (clean, robust) of a run."""

    def contradiction(self, directory: str) -> str:
        """How the outcomes of a run contradict its record; empty if they do not."""

    def save(self) -> None:
        """Write the new entries."""


@dataclass(frozen=True)
class Conditions:
    """The conditions that the seeds of one row share; the data set counts by fingerprint, not by name."""

    defense: str
    params: dict[str, Any]
    regime: str
    target_aware: bool
    fingerprint: str
    model: Any
    sequence: list[str]
    training: list[str]
    plan: dict[str, Any]
    pretrain: Any
    protocol: str


@dataclass(frozen=True)
class Result:
    """One run as a leaderboard uses it.

    ``group`` is a hash of ``conditions``. ``attacks``, ``roles``, ``counts`` and ``robust`` have one entry
    per attack, in the record's order. ``counts`` holds the measured points after the last stage (0 if not
    measured), ``robust`` the number of them that are correct clean and after the attack. ``weights`` is a
    digest of the final weights, empty if unknown. ``directory`` is empty if there is only a record.
    """

    id: str
    created: str
    seed: int
    dataset: str
    group: str
    conditions: Conditions
    verdict: Verdict
    flags: list[str]
    metrics: dict[str, float | None]
    cost: dict[str, float]
    attacks: list[str]
    roles: list[str]
    counts: list[int]
    robust: list[int]
    weights: str = ""
    directory: str = ""
    cache: Keeper | None = field(default=None, repr=False, compare=False)

    @property
    def layout(self) -> Layout:
        """The layout of the run's outcomes."""
        return Layout.of(self.conditions.regime, self.roles, self.counts, self.attacks)

    def value(self, metric: str) -> float | None:
        """A metric of the run, or its accuracy under a single attack; None if it has no such value."""
        attack = attack_of(metric)
        if attack is None:
            return self.metrics.get(metric)
        column = self.layout.under(attack)
        if column is None or not self.counts[column]:
            return None
        return self.robust[column] / self.counts[column]

    def outcomes(self) -> tuple[Bools, Bools]:
        """The outcomes (clean, robust) of the run, see `read_outcomes`.

        Raises:
            RecordError: the outcomes are missing or cannot be read.
        """
        if not self.directory:
            raise RecordError(f"run {self.id}: the location of its outcomes is unknown")
        if self.cache is not None:
            return self.cache.outcomes(self.directory)
        return read_outcomes(Path(self.directory) / OUTCOMES)


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def stated(params: Mapping[str, Any]) -> dict[str, Any]:
    """Drop parameters whose value is None, so that records that predate the parameter compare equal."""
    return {name: value for name, value in params.items() if value is not None}


def group_of(conditions: Mapping[str, Any]) -> str:
    """The hash that rows are grouped by."""
    return hashlib.blake2b(canonical(conditions).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def result_of(record: Record, directory: str | Path = "", cache: Keeper | None = None) -> Result:
    """A record as a leaderboard sees it; ``directory`` is where its outcomes are."""
    config = record.config
    shared = {
        "target_aware": bool(config.get("target_aware", False)),
        "fingerprint": record.environment["data"]["fingerprint"],
        "protocol": record.protocol,
    }
    keys = ("defense", "params", "regime", "model", "sequence", "training", "plan", "pretrain")
    shared |= {key: config[key] for key in keys}
    shared |= {"params": stated(config["params"]), "model": model_name(config)}
    if isinstance(weights := config.get("weights"), dict) and isinstance(config["pretrain"], dict):
        # Runs that start from other weights are not seeds of one row.
        shared["pretrain"] = {**config["pretrain"], "weights": weights.get("sha256")}
    cells = record.last_cells()
    measured = [cells.get(entry.text) for entry in record.attacks]
    return Result(
        id=record.id,
        created=record.created,
        seed=config["seed"],
        dataset=config["dataset"],
        group=group_of(shared),
        conditions=Conditions(**shared),
        verdict=record.audit.verdict,
        flags=sorted({flag.code for flag in record.audit.flags}),
        metrics={**record.metrics, **reported(record)},
        cost={name: getattr(record.cost, name) for name in COSTS},
        attacks=[entry.text for entry in record.attacks],
        roles=[entry.role for entry in record.attacks],
        counts=[0 if cell is None else cell.n for cell in measured],
        robust=[0 if cell is None else cell.robust for cell in measured],
        weights=_weights_of(record, Path(directory)) if directory else "",
        directory=str(directory),
        cache=cache,
    )


def _weights_of(record: Record, directory: Path) -> str:
    """A digest of the final weights: from the record of an evaluated model, or from a run's checksums.

    Checksums remain even if the weights themselves were left out.
    """
    if not record.stages:
        return ""
    stage = max(record.stages, key=lambda one: one.index)
    for key in ("state_sha256", "weights_sha256"):
        if record.regime == "eval" and isinstance(known := stage.spec.get(key), str):
            return known
    try:
        return listed_files(directory).get(stage.weights, "")
    except RecordError:
        return ""
