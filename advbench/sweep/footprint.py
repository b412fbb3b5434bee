"""Estimates what a run holds in memory and on disk, beside Python and torch themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from advbench.config.options import RunConfig
from advbench.data import DataSet, Split
from advbench.data.pixels import Pixels
from advbench.evaluation.shards import blocks
from advbench.runs.checkpoint import KEPT
from advbench.runs.saved import new_classifier
from advbench.runtime.device import reproducible
from attacks_pool.calling.guard import evaluation_mode
from defenses import TrainPlan

FEW = 4
"""The images that activations are counted on."""
COPIES = 2
"""Further copies of a model: the previous stage's, which many defenses keep, and the audit's."""


def memory_of(config: RunConfig, data: DataSet, device: torch.device) -> dict[str, int]:
    """Bytes of images, of weights with gradients and optimizer, and of one batch's activations.

    Activations are those that a backward pass needs, counted on a few images, for the larger of a training
    batch and a block of test points. A defense with further networks needs more.
    """
    with reproducible(config.threads):
        model = new_classifier(config, data.image_shape, data.num_classes).to(device)
        count = min(FEW, len(data.test))
        per_image = _activations(model, data.test.images[:count].to(device)) / count
    block = next(blocks(data.image_shape, len(data.test)))
    images = max(min(config.stage_plan.batch_size, len(data.train)), block.stop)
    weights = _weights(model)
    found = {
        "images": sum(map(_held, (data.train, data.validation, data.test))),
        "weights": weights * (2 + COPIES + _states(config.stage_plan)),
        "activations": round(per_image * images),
    }
    return {**found, "total": sum(found.values())}


def disk_of(config: RunConfig, data: DataSet) -> dict[str, int]:
    """Bytes of a finished run, and the most while it goes on, when checkpoints are there too."""
    with reproducible(config.threads):
        weights = _weights(new_classifier(config, data.image_shape, data.num_classes))
    # A file for each stage, for stage 0 and for the final model.
    finished = weights * (config.stages + 2)
    # Snapshots of the stage in training have an optimizer; states after stages have none. While a snapshot
    # replaces an older one, both are there.
    states = 1 + _states(config.stage_plan)
    checkpoints = weights * ((KEPT + 1) * states + KEPT + 1)
    return {"finished": finished, "most": finished + checkpoints}


def _states(plan: TrainPlan) -> int:
    """How many numbers the optimizer keeps for each parameter."""
    return (1 if plan.momentum else 0) if plan.optimizer == "sgd" else 2


def _weights(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _held(split: Split) -> int:
    """The bytes of a split as it is stored; images that are read from files when they are needed are none."""
    images = split.images
    if isinstance(images, Pixels):
        stored = images.read(slice(0, 1)).nbytes * len(images) if images.resident else 0
    else:
        stored = len(images) * 4 * int(np.prod(images.shape[1:]))
    return stored + split.y.nbytes


def _activations(model: nn.Module, x: Tensor) -> int:
    """The bytes that a backward pass through ``model`` needs from a forward pass of ``x``."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    with (
        evaluation_mode(model),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        # The graph holds the tensors until they are counted, so that no address is used twice.
        # A clone has a storage of its own, and not that of the whole data set.
        output = model(x.clone().requires_grad_())
        total = sum(kept.values())
    del output
    return total
