"""Wide residual networks for images of about 32×32 pixels (arXiv:1605.07146)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from advbench.models.blocks import network, pooled_head


class WideBlock(nn.Module):
    """Batch normalisation and ReLU before each of two 3×3 convolutions, added to the input.

    If the number of channels changes, the shortcut is a 1×1 convolution of the *activated* input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        active = functional.relu(self.bn1(x))
        inner: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(
    depth: int,
    widen: int,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """WRN-``depth``-``widen`` without dropout; ``depth`` is 6·n + 4 for n blocks in each of three groups.

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given.
    """
    blocks = (depth - 4) // 6
    features: dict[str, nn.Module] = {"conv": nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)}
    channels = 16
    for group, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        first = WideBlock(channels, width, stride=1 if group == 1 else 2)
        features[f"group{group}"] = nn.Sequential(
            first, *(WideBlock(width, width, 1) for _ in range(1, blocks))
        )
        channels = width
    features |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    model = network(features, pooled_head(channels, num_classes), mean=mean, std=std)
    for module in model.modules():
        # Initialise like the authors' code: with He's normal distribution over the outputs.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model


def wrn_28_10(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """WRN-28-10: 36.5 M parameters.

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given.
    """
    return wide_resnet(28, 10, num_classes, in_channels, mean=mean, std=std)


def wrn_34_10(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """WRN-34-10, the usual large network of adversarial training: 46.2 M parameters.

    Raises:
        InputError: Only one of ``mean`` and ``std`` is given.
    """
    return wide_resnet(34, 10, num_classes, in_channels, mean=mean, std=std)
