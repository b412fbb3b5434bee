"""Shared parts of EWC and SI: a penalty that holds weights near earlier values, by their importance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""A tensor for each trained parameter, by its name in the model and with its shape."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """θ: the parameters that require gradients. Buffers, such as batch-norm statistics, are not included."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copied(weights: Mapping[str, Tensor]) -> Weights:
    """Copy values, so that training cannot change them."""
    return {name: value.detach().clone() for name, value in weights.items()}


def placed(weights: Mapping[str, Tensor], device: torch.device) -> Weights:
    """Move all values to ``device``."""
    return {name: value.to(device) for name, value in weights.items()}


def pull(model: nn.Module, importance: Weights, anchor: Weights) -> Tensor:
    """The penalty Σ_i Ω_i · (θ_i − θ*_i)², with Ω the importance and θ* the anchor; a scalar."""
    theta = trained(model)
    terms = [(importance[name] * (theta[name] - anchor[name]).square()).sum() for name in importance]
    return torch.stack(terms).sum()
