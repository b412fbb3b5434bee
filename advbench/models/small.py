"""Small convolutional networks for grey images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from advbench.models.blocks import network, square_or_pair


def digits_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | tuple[int, int] = 8,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Two 3×3 convolutions (32; 64 with stride 2), a hidden layer of 64: for images of about 8×8 pixels.

    The stride in place of pooling costs a quarter of the multiply-adds at the same robust accuracy.

    Raises:
        InputError: ``image_size`` is below 4, or only one of ``mean`` and ``std`` is given.
    """
    height, width = square_or_pair(image_size, least=4, model="digits-cnn")
    first, second = nn.Conv2d(in_channels, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
    pixels = ((height + 1) // 2) * ((width + 1) // 2)
    return _joined(first, second, pixels, 64, num_classes, mean, std)


def lenet(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | tuple[int, int] = 28,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Two 4×4 convolutions of stride 2 (32, 64), a hidden layer of 256: for images of about 28×28 pixels.

    This is the network of fast adversarial training on MNIST (arXiv:2001.03994), twice as wide; strides in
    place of pooling keep it cheap.

    Raises:
        InputError: ``image_size`` is below 12, or only one of ``mean`` and ``std`` is given.
    """
    return _lenet("lenet", 32, 256, num_classes, in_channels, image_size, mean, std)


def lenet_small(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | tuple[int, int] = 28,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Two 4×4 convolutions of stride 2 (16, 32), a hidden layer of 100: the network of arXiv:2001.03994.

    A quarter of the multiply-adds of :func:`lenet`, for sweeps on a processor.

    Raises:
        InputError: ``image_size`` is below 12, or only one of ``mean`` and ``std`` is given.
    """
    return _lenet("lenet-small", 16, 100, num_classes, in_channels, image_size, mean, std)


def _lenet(
    model: str,
    channels: int,
    hidden: int,
    num_classes: int,
    in_channels: int,
    image_size: int | tuple[int, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> nn.Sequential:
    height, width = square_or_pair(image_size, least=12, model=model)
    first = nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)
    second = nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)
    return _joined(first, second, (height // 4) * (width // 4), hidden, num_classes, mean, std)


def _joined(
    first: nn.Conv2d,
    second: nn.Conv2d,
    pixels: int,
    hidden: int,
    num_classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> nn.Sequential:
    """Two convolutions, whose map has ``pixels``, and two linear layers."""
    features = {"conv1": first, "relu1": nn.ReLU(), "conv2": second, "relu2": nn.ReLU()}
    classifier = {
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(second.out_channels * pixels, hidden),
        "relu": nn.ReLU(),
        "linear": nn.Linear(hidden, num_classes),
    }
    return network(features, classifier, mean=mean, std=std)
