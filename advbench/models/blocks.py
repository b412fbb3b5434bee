"""The shared structure and checks of the zoo's networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from advbench.models.normalize import Normalize
from attacks_pool.errors import InputError


def network(
    features: dict[str, nn.Module],
    classifier: dict[str, nn.Module],
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> nn.Sequential:
    """``features`` (images to a feature map), then ``classifier`` (feature map to logits).

    Every network of the zoo has these two children, so that a defense can split it. ``mean`` and ``std``,
    given together, put a ``Normalize`` in front of the features.
    """
    if (mean is None) != (std is None):
        raise InputError("normalisation needs both mean and std, or neither")
    front = {} if mean is None or std is None else {"normalize": Normalize(mean, std)}
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(OrderedDict({**front, **features})),
            classifier=nn.Sequential(OrderedDict(classifier)),
        )
    )


def square_or_pair(image_size: int | tuple[int, int], *, least: int, model: str) -> tuple[int, int]:
    """``image_size`` as (height, width).

    Raises:
        InputError: A side is below ``least`` pixels.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < least:
        raise InputError(
            f"model {model!r} needs images of {least}×{least} pixels or more, got {height}×{width}"
        )
    return height, width


def pooled_head(width: int, num_classes: int) -> dict[str, nn.Module]:
    """A classifier of global average pooling and one linear layer."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "linear": nn.Linear(width, num_classes),
    }
