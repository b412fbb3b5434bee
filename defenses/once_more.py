"""The data of a stage once more, when it has trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attacks_pool.batches import check_batch
from defenses.stage import Stage


def once_more(stage: Stage, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The clean batches, checked and on ``device``, as one epoch more would have them, unaugmented."""
    if hasattr(stage.data, "set_epoch"):
        stage.data.set_epoch((stage.index - 1) * 100_000 + stage.plan.epochs)
    for images, labels in stage.data:
        yield check_batch(images.to(device), labels.to(device))
