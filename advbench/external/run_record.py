"""Makes the record of a model that was evaluated, not trained: one row of R, no sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from advbench.data import DataSet
from advbench.evaluation.abstaining import LAST
from advbench.evaluation.row import MatrixRow
from advbench.external import Foreign
from advbench.models.cost import multiply_adds
from advbench.runs.record import Measured, record_of
from advbench.runs.saved import WEIGHTS
from attacks_pool import Attack, Passes
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness
from leaderboards import Audit, Record, RecordedStage
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
    model, counts = foreign.model, [count for _, count in attacks]
    spec = {"defense": foreign.name, "copied": kept(foreign), **foreign.origin}
    weights = WEIGHTS if kept(foreign) else NOT_KEPT
    measured = Measured(
        attacks={"seen": [], "unseen": [], "eval": [attack for attack, _ in attacks]},
        points=counts,
        rows=[row],
        stages=[RecordedStage(index=0, attacks=[], weights=weights, spec=spec)],
        passes=Passes(),
        training_seconds=0.0,
        evaluation_seconds=seconds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=counted(model, data.test.x[:1]),
        audit=audit,
        environment=environment,
    )
    return record_of(config, data, measured, name, eval_metrics(row.clean, row.robust, counts))


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """The multiply-adds for one image ``x`` (1, C, H, W); 0 if a program does not allow counting."""
    device = next((tensor.device for tensor in model.parameters()), x.device)
    try:
        with evaluation_mode(model), isolated_randomness(0, device):
            return multiply_adds(model, x.to(device))
    except Exception:  # counting may fail for a compiled program
        return 0
