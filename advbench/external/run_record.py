"""Makes the record of a model that was evaluated, not trained: one row of R, no sequence."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from advbench.evaluation.abstaining import LAST
from advbench.external import Foreign
from advbench.models.cost import multiply_adds
from attacks_pool import Attack
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness
from leaderboards.records.layout import EVALUATED

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


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """The multiply-adds for one image ``x`` (1, C, H, W); 0 if a program does not allow counting."""
    device = next((tensor.device for tensor in model.parameters()), x.device)
    try:
        with evaluation_mode(model), isolated_randomness(0, device):
            return multiply_adds(model, x.to(device))
    except Exception:  # counting may fail for a compiled program
        return 0
