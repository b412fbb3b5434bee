"""Makes the record of a model that was evaluated, not trained: one row of R, no sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from advbench.config.options import protocol_of
from advbench.data import DataSet
from advbench.evaluation.abstaining import LAST
from advbench.evaluation.row import MatrixRow
from advbench.external import Foreign
from advbench.models.cost import multiply_adds
from advbench.runs.record import Measured, attack_entry, per_class_counts
from advbench.runs.saved import WEIGHTS
from attacks_pool import Attack, Passes
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness
from leaderboards import SCHEMA, Audit, Cost, Record, RecordedStage
from leaderboards.records.layout import EVALUATED
from leaderboards.statistics.measured import eval_metrics

GROUP = "evaluated models"
"""The model name in records of evaluations, so that they are ranked only with each other."""
NOT_KEPT = "not-kept"
"""The placeholder for weights of a stage that the run directory has no copy of."""


def eval_config(foreign: Foreign, attacks: Sequence[Attack], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a record stores it, under the keys that every record has, with further keys ``rest``."""
    return {
        "defense": foreign.name,
        "params": foreign.parameters,
        "sequence": [],
        "training": [],
        "regime": EVALUATED,
        "unseen": [],
        "eval": [attack.text for attack in attacks],
        "model": GROUP,
        "plan": {},
        "pretrain": {},
        "target_aware": False,
        **({"abstain": LAST} if foreign.model.abstains else {}),
        **rest,
    }


def kept(foreign: Foreign) -> bool:
    """Whether the run directory gets a copy of the weights: only safetensors, which cannot contain code."""
    return foreign.file is not None and foreign.file.suffix == ".safetensors"


def eval_record(
    name: str,
    config: dict[str, Any],
    foreign: Foreign,
    data: DataSet,
    *,
    row: MatrixRow,
    attacks: Sequence[tuple[Attack, int]],
    audit: Audit,
    seconds: float,
    environment: dict[str, Any],
) -> Record:
    """The record with id ``name`` of one measured row."""
    counts = [count for _, count in attacks]
    spec = {"defense": foreign.name, "copied": kept(foreign), **foreign.origin}
    model = foreign.model
    measured = Measured(
        attacks={"seen": [], "unseen": [], "eval": [attack for attack, _ in attacks]},
        points=counts,
        rows=[row],
        stages=[
            RecordedStage(index=0, attacks=[], weights=WEIGHTS if kept(foreign) else NOT_KEPT, spec=spec)
        ],
        passes=Passes(),
        training_seconds=0.0,
        evaluation_seconds=seconds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=counted(model, data.test.x[:1]),
        audit=audit,
        environment=environment,
    )
    return Record(
        schema=SCHEMA,
        id=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="complete",
        config=config,
        protocol=protocol_of(config["eval"], config["points"], config.get("abstain")),
        regime=EVALUATED,
        attacks=[attack_entry(attack, "eval", None) for attack, _ in attacks],
        stages=measured.stages,
        environment=measured.environment,
        cells=row.cells,
        metrics=eval_metrics(row.clean, row.robust, counts),
        per_class=per_class_counts(data, row.clean, row.robust, measured.texts),
        cost=Cost(
            training_seconds=0.0,
            training_forwards=0,
            training_backwards=0,
            evaluation_seconds=seconds,
            parameters=measured.parameters,
            multiply_adds=measured.multiply_adds,
        ),
        audit=audit,
    )


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """The multiply-adds for one image ``x`` (1, C, H, W); 0 if a program does not allow counting."""
    device = next((tensor.device for tensor in model.parameters()), x.device)
    try:
        with evaluation_mode(model), isolated_randomness(0, device):
            return multiply_adds(model, x.to(device))
    except Exception:  # counting may fail for a compiled program
        return 0
