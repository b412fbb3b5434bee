"""What EWC and SI share: weights that are held to where they were, each as far as it matters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""A value for each trained parameter, by its name in the model; of the parameter's shape."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """θ: the parameters that ask for gradients. Buffers, such as batch-norm statistics, are none."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copied(weights: Mapping[str, Tensor]) -> Weights:
    """Values that training cannot move."""
    return {name: value.detach().clone() for name, value in weights.items()}


def placed(weights: Mapping[str, Tensor], device: torch.device) -> Weights:
    """The same on ``device``."""
    return {name: value.to(device) for name, value in weights.items()}


def pull(model: nn.Module, importance: Weights, anchor: Weights) -> Tensor:
    """Σ_i Ω_i · (θ_i − θ*_i)², Ω the importance and θ* the anchor; a scalar."""
    theta = trained(model)
    terms = [(importance[name] * (theta[name] - anchor[name]).square()).sum() for name in importance]
    return torch.stack(terms).sum()
