"""Residual networks for images of about 32×32 pixels (arXiv:1512.03385, arXiv:1603.05027)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from advbench.models.blocks import network, pooled_head
from advbench.models.wideresnet import WideBlock

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation, added to the input or to its 1×1 projection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(inner + self.shortcut(x))


def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """ResNet-18 with a 3×3 stem of stride 1 and no max-pooling, as is usual on CIFAR: 11.2 M parameters.

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given.
    """
    return _resnet(WIDTHS, 2, num_classes, in_channels, mean, std)


def resnet20(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """The ResNet-20 of the CIFAR experiments of arXiv:1512.03385: 0.27 M parameters, 41 M multiply-adds.

    Three groups of three blocks with 16, 32 and 64 channels. Where the width changes, the shortcut is a 1×1
    projection (the paper's option B) in place of zero padding.

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given.
    """
    return _resnet((16, 32, 64), 3, num_classes, in_channels, mean, std)


def _resnet(
    widths: Sequence[int],
    blocks: int,
    num_classes: int,
    in_channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> nn.Sequential:
    features: dict[str, nn.Module] = {
        "conv": nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
        "bn": nn.BatchNorm2d(widths[0]),
        "relu": nn.ReLU(),
    }
    channels = widths[0]
    for number, width in enumerate(widths, start=1):
        first = BasicBlock(channels, width, stride=1 if number == 1 else 2)
        rest = (BasicBlock(width, width, stride=1) for _ in range(1, blocks))
        features[f"layer{number}"] = nn.Sequential(first, *rest)
        channels = width
    return network(features, pooled_head(channels, num_classes), mean=mean, std=std)


def preact_resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Pre-activation ResNet-18 (arXiv:1603.05027) with a 3×3 stem, as is usual on CIFAR: 11.2 M parameters.

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given.
    """
    features: dict[str, nn.Module] = {"conv": nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)}
    channels = WIDTHS[0]
    for number, width in enumerate(WIDTHS, start=1):
        first = WideBlock(channels, width, stride=1 if number == 1 else 2)
        features[f"layer{number}"] = nn.Sequential(first, WideBlock(width, width, stride=1))
        channels = width
    features |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    return network(features, pooled_head(channels, num_classes), mean=mean, std=std)
