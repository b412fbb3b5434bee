"""An easy data set made on the spot, and a small network for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.models.blocks import network as split_network
from attacks_pool.randomness import keyed_generator

Batches = list[tuple[Tensor, Tensor]]
BATCH_SIZE = 32


class Images(NamedTuple):
    """The kind of images and labels that a classifier is for."""

    channels: int = 1
    classes: int = 3
    height: int = 8
    width: int = 8

    def __str__(self) -> str:
        return f"{self.channels}×{self.height}×{self.width} images of {self.classes} classes"


BASE = Images()
KINDS = (BASE, Images(channels=3), Images(classes=10), Images(width=12))
"""The usual images of the contract, and three that each differ from them in one respect."""

Network = Callable[[Images], nn.Module]


def small_network(images: Images) -> nn.Module:
    """Two convolutions with batch norm and one linear layer, in two halves like every model of the zoo."""
    height, width = (-(-side // 2) for side in (images.height, images.width))
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(images.channels, 8, 3, padding=1),
        "norm": nn.BatchNorm2d(8),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "relu2": nn.ReLU(),
    }
    head = {"flatten": nn.Flatten(), "linear": nn.Linear(16 * height * width, images.classes)}
    return split_network(features, head, mean=None, std=None)


def easy_images(images: Images, points: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Each class a fixed pattern of 2×2 blocks of 0.2 or 0.8, and noise N(0, 0.1²) on every pixel.

    Returns:
        x float32 (points, C, H, W) in [0, 1] and y int64 (points,), the classes in turn.
    """
    channels, classes, height, width = images
    blocks = (classes, channels, -(-height // 2), -(-width // 2))
    patterns = torch.randint(0, 2, blocks, generator=keyed_generator("contract", "patterns", images))
    pixels = F.interpolate(0.2 + 0.6 * patterns.float(), scale_factor=2)[..., :height, :width]
    y = torch.arange(points) % classes
    noise = torch.randn((points, *pixels.shape[1:]), generator=keyed_generator("contract", seed, images))
    return (pixels[y] + 0.1 * noise).clamp(0, 1), y


def batches(images: Images, points: int, *, seed: int = 0) -> Batches:
    """Training batches of the easy images."""
    x, y = easy_images(images, points, seed=seed)
    starts = range(0, points, BATCH_SIZE)
    return [(x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]) for start in starts]
