"""What a leaderboard needs of a run: a record without its cells, its stages and its audit's evidence."""

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
from leaderboards.statistics.points import Layout
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
    """What keeps outcomes between readings: see `leaderboards.boards.cache`."""

    def outcomes(self, directory: str) -> tuple[Bools, Bools]:
        """(clean, robust) of a run."""

    def contradiction(self, directory: str) -> str:
        """How the outcomes of a run contradict its record; empty where they do not."""

    def save(self) -> None:
        """Write what is new."""


@dataclass(frozen=True)
class Conditions:
    """What the seeds of one row share, but for the name of the data set (its fingerprint counts)."""

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
    """One run as its row sees it.

    ``group`` is a hash of ``conditions``. ``attacks``, ``roles``, ``counts`` and ``robust`` are of the
    attacks, in the record's order; ``counts`` are points after the last stage, 0 where that was not measured,
    and ``robust`` those of them that are right clean and after the attack. ``weights`` is a digest of the
    final weights, empty where nothing has one. ``directory`` is empty where there is only a record.
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
        """How its outcomes are to be read."""
        return Layout.of(self.conditions.regime, self.roles, self.counts, self.attacks)

    def value(self, metric: str) -> float | None:
        """A metric of the run, or its accuracy under a single attack; None where it has none."""
        attack = attack_of(metric)
        if attack is None:
            return self.metrics.get(metric)
        column = self.layout.under(attack)
        if column is None or not self.counts[column]:
            return None
        return self.robust[column] / self.counts[column]

    def outcomes(self) -> tuple[Bools, Bools]:
        """(clean, robust) of the run, see `read_outcomes`.

        Raises:
            RecordError: there are none, or they cannot be read.
        """
        if not self.directory:
            raise RecordError(f"run {self.id}: where its outcomes are is not known")
        if self.cache is not None:
            return self.cache.outcomes(self.directory)
        return read_outcomes(Path(self.directory) / OUTCOMES)


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def stated(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those at None: one is as it was for records from before there was one."""
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
    shared["params"] = stated(config["params"])
    last = max((cell.stage for cell in record.cells), default=0)
    cells = {cell.attack: cell for cell in record.cells if cell.stage == last}
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
        metrics=dict(record.metrics),
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
    """What tells the final weights from others: of an evaluated model the record says it.

    Of a run its checksums do, which are kept where the weights are not.
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
