"""The computational cost of a model."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attacks_pool.calling.guard import unfused_attention


def multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    """The multiply-adds for predicting one image, in convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), unfused_attention(), counter:
        model(x)
    return counter.get_total_flops() // 2
