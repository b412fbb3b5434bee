"""Which scores of a model are numbers that a prediction can be read from."""

from __future__ import annotations

import torch
from torch import Tensor


def broken(logits: Tensor) -> Tensor:
    """(N,) rows of logits (N, K) with a NaN or +∞, or without a finite one.

    −∞ is what a masked class gets: the model rules it out, and the others decide.
    """
    return (logits.isnan() | (logits == torch.inf)).any(1) | (logits == -torch.inf).all(1)
