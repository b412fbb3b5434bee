"""A small network that says how much of each adapter an image gets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.errors import InputError


class ConvRouter(nn.Module):
    """Images (N, C, H, W) to scores (N, E): 3×3 convolutions with ReLU, mean, batch norm, one linear layer.

    The first convolution keeps the size, each of the ``depth`` further ones halves it and doubles the width.
    The authors' code has a residual network of 19 convolutions of width 16, 32 and 64 here, which is several
    times the cost of the networks that small images need. Batch norm, without weights of its own, is on the
    last features alone: it tells images apart from the first step on. In eval mode a score depends on its
    image alone.

    Args:
        channels: C.
        experts: E.
        width: channels of the first convolution.
        depth: convolutions of stride 2.
        seed: determines the first weights.
    """

    def __init__(self, channels: int, experts: int, *, width: int, depth: int, seed: int) -> None:
        super().__init__()
        self.channels = channels
        with isolated_randomness(seed, torch.device("cpu")):
            layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            for number in range(depth):
                now = width * 2**number
                layers += [nn.Conv2d(now, 2 * now, 3, stride=2, padding=1), nn.ReLU()]
            self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.norm = nn.BatchNorm1d(width * 2**depth, affine=False)
            self.linear = nn.Linear(width * 2**depth, experts)

    def add_expert(self, seed: int) -> None:
        """A score for one more adapter, whose first weights ``seed`` determines; the others stay."""
        old = self.linear
        with isolated_randomness(seed, torch.device("cpu")):
            new = nn.Linear(old.in_features, old.out_features + 1).to(old.weight)
        with torch.no_grad():
            new.weight[:-1].copy_(old.weight)
            new.bias[:-1].copy_(old.bias)
        self.linear = new

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, E).

        Raises:
            InputError: images of another number of channels.
        """
        if x.shape[1] != self.channels:
            raise InputError(f"the router takes images of {self.channels} channels, not {x.shape[1]}")
        features, norm = self.features(x), self.norm
        # One image has no spread: it meets the running statistics.
        features = (
            norm(features) if len(x) > 1 else F.batch_norm(features, norm.running_mean, norm.running_var)
        )
        scores: Tensor = self.linear(features)
        return scores
