"""A small network that computes the weight of each adapter for an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.errors import InputError
from defenses.training.processes import current, whole


class ConvRouter(nn.Module):
    """Images (N, C, H, W) to scores (N, E): 3×3 convolutions with ReLU, mean, batch norm, one linear layer.

    The first convolution keeps the size; each of ``depth`` further ones halves it and doubles the width.
    The authors' code uses a residual network of 19 convolutions of width 16, 32 and 64 instead, which costs
    several times as much as the networks that suit small images. Batch norm, without affine weights, is only
    on the last features: it makes scores differ between images from the first step on. In eval mode a score
    depends only on its own image.

    Args:
        channels: C.
        experts: E.
        width: channels of the first convolution.
        depth: number of convolutions with stride 2.
        seed: determines the initial weights.
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
        """Add a score for one more adapter, initialised with ``seed``; the other scores stay the same."""
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
            InputError: the images have another number of channels.
        """
        if x.shape[1] != self.channels:
            raise InputError(f"the router takes images of {self.channels} channels, not {x.shape[1]}")
        scores: Tensor = self.linear(self._normalised(self.features(x.to(self.linear.weight.dtype))))
        return scores

    def _normalised(self, features: Tensor) -> Tensor:
        """Batch norm of features (N, F); several processes share the statistics of the whole batch."""
        norm, part = self.norm, current(len(features))
        if self.training and not part.whole:
            normalised: Tensor = norm(whole(features))
            return normalised[part.slice]
        # A single image has no variance, so it uses the running statistics.
        if len(features) > 1:
            return norm(features)  # type: ignore[no-any-return]
        return F.batch_norm(features, norm.running_mean, norm.running_var)
