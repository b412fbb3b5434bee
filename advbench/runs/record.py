"""Makes the run record from measurements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from advbench.config.options import RunConfig, explain, protocol_of
from advbench.data import DataSet
from advbench.evaluation.row import MatrixRow
from advbench.runs.directory import now
from attacks_pool import Attack, InputError
from defenses.training.tally import Report
from leaderboards import SCHEMA, AttackEntry, Audit, Cost, PerClass, Record, RecordedStage
from leaderboards.records.entries import Role, TrainingReport
from leaderboards.statistics.measured import metrics_of, transfer_metric

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """All measurements of a run; attacks are by role, points per attack are in the order seen, unseen, eval.

    ``more`` has metrics that only some defenses have, ``report`` what the defense reports about its training.
    """

    attacks: dict[str, list[Attack]]
    points: list[int]
    rows: list[MatrixRow]
    stages: list[RecordedStage]
    cost: Cost
    audit: Audit
    environment: dict[str, Any]
    more: dict[str, float | None] = field(default_factory=dict)
    report: Report = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The attacks' texts, in the order seen, unseen, eval."""
        return [attack.text for role in get_args(Role) for attack in self.attacks[role]]

    @property
    def clean(self) -> NDArray[np.bool_]:
        """(T+1, n) whether each point is classified correctly when clean."""
        return np.stack([row.clean for row in self.rows])

    @property
    def robust(self) -> NDArray[np.bool_]:
        """(T+1, A, n) whether each point is classified correctly, clean and after the attack."""
        return np.stack([row.robust for row in self.rows])


def make_record(config: RunConfig, data: DataSet, measured: Measured, name: str) -> Record:
    """Make the run record; tables are derived from it and not stored."""
    metrics = {**_metrics(config, measured), **measured.more}
    return record_of(config.model_dump(mode="json"), data, measured, name, metrics)


def record_of(
    config: dict[str, Any], data: DataSet, measured: Measured, name: str, metrics: dict[str, float | None]
) -> Record:
    """The record with id ``name`` of a run, or of an evaluation, with these metrics."""
    training = {attack.text: attack.training_text for attack in measured.attacks["seen"]}
    texts = [*config["sequence"], *config["unseen"], *config["eval"]]
    return Record(
        schema=SCHEMA,
        id=name,
        created=now(),
        status="complete",
        config=config,
        protocol=protocol_of(texts, config["points"], config.get("abstain")),
        regime=config["regime"],
        attacks=[
            attack_entry(attack, role, training.get(attack.text))
            for role in get_args(Role)
            for attack in measured.attacks[role]
        ],
        stages=measured.stages,
        environment=measured.environment,
        cells=[cell for row in measured.rows for cell in row.cells],
        metrics=metrics,
        per_class=per_class_counts(data, measured.clean[-1], measured.robust[-1], measured.texts),
        cost=measured.cost,
        audit=measured.audit,
        report=_report(config["defense"], measured.report),
    )


def _report(defense: str, report: Report) -> TrainingReport | None:
    """The numbers and tables of a report; None if it is empty."""
    if not report:
        return None
    tables = {name: value for name, value in report.items() if isinstance(value, dict)}
    numbers = {name: value for name, value in report.items() if name not in tables}
    try:
        return TrainingReport.model_validate({"numbers": numbers, "tables": tables})
    except ValidationError as error:
        fault = explain(error)
        raise InputError(f"{defense}: report() must return finite numbers and tables: {fault}") from None


def _metrics(config: RunConfig, measured: Measured) -> dict[str, float | None]:
    seen, unseen = measured.attacks["seen"], measured.attacks["unseen"]
    found = metrics_of(
        measured.clean,
        measured.robust,
        regime=config.regime,
        seen=len(seen),
        unseen=len(unseen),
        points=measured.points,
    )
    return found | transfer_metric(measured.audit.probes, [attack.text for attack in seen])


def attack_entry(attack: Attack, role: Role, training: str | None) -> AttackEntry:
    return AttackEntry(
        text=attack.text,
        name=attack.name,
        family=attack.info.family,
        norm=attack.info.norm,
        eps=attack.eps,
        access=attack.info.access,
        kind=attack.info.kind,
        role=role,
        training=training,
    )


def by_group(data: DataSet, clean: Bools) -> Report:
    """A table of the clean accuracy in percent on each group of test points; empty if there are no groups.

    A row ends with its mean, and the last row holds the mean of each column, over groups of any size alike.

    Args:
        data: the data set.
        clean: (n,) whether each of the first test points is correct clean.
    """
    if data.groups is None:
        return {}
    numbers = data.groups.numbers[: len(clean)]
    table: dict[str, dict[str, float]] = {}
    for number, (row, column) in enumerate(data.groups.names):
        if (here := numbers == number).any():
            table.setdefault(row, {})[column] = 100 * float(clean[here].mean())
    columns = dict.fromkeys(column for cells in table.values() for column in cells)
    table["mean"] = {
        column: float(np.mean([cells[column] for cells in table.values() if column in cells]))
        for column in columns
    }
    for cells in table.values():
        cells["mean"] = float(np.mean(list(cells.values())))
    return {data.groups.title: table}


def per_class_counts(data: DataSet, clean: Bools, robust: Bools, texts: Sequence[str]) -> list[PerClass]:
    """Counts of the final stage by class; the worst case is over the points that all attacks share.

    Args:
        data: the data set, for the labels of the test points and the names of classes.
        clean: (n,) whether each point is correct clean.
        robust: (A, n) whether it is correct clean and after the attack.
        texts: the texts of the attacks.
    """
    labels = data.test.y[: len(clean)].numpy()
    # Without attacks, the points that are correct clean survive.
    survived = clean & robust.all(0)
    found = []
    for label, name in enumerate(data.classes):
        mask = labels == label
        found.append(
            PerClass.of(
                name,
                n=int(mask.sum()),
                clean_correct=int((clean & mask).sum()),
                robust={text: int((robust[index] & mask).sum()) for index, text in enumerate(texts)},
                worst_case=int((survived & mask).sum()),
            )
        )
    return found
