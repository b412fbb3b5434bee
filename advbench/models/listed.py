"""The models of the zoo by name, and the forms in which a model may be named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelInfo:
    """A model of the zoo; ``parameters`` is their number for 10 classes and its usual ``input``."""

    name: str
    description: str
    input: str
    parameters: int
    factory: str


_SMALL = "advbench.models.small"
_RESNET = "advbench.models.resnet"
_LISTED = (
    ModelInfo("digits-cnn", "two convolutions; fast on a processor", "1×8×8", 85066, f"{_SMALL}:digits_cnn"),
    ModelInfo("lenet", "two strided convolutions (arXiv:2001.03994)", "1×28×28", 839018, f"{_SMALL}:lenet"),
    ModelInfo(
        "lenet-small",
        "half as wide, a quarter of the multiply-adds",
        "1×28×28",
        166406,
        f"{_SMALL}:lenet_small",
    ),
    ModelInfo(
        "resnet-20",
        "ResNet-20 with 1×1 projections (arXiv:1512.03385); small enough for a processor",
        "3×32×32",
        272474,
        f"{_RESNET}:resnet20",
    ),
    ModelInfo(
        "resnet18",
        "ResNet-18, 3×3 stem (arXiv:1512.03385)",
        "3×32×32",
        11173962,
        f"{_RESNET}:resnet18",
    ),
    ModelInfo(
        "preact-resnet-18",
        "pre-activation ResNet-18, 3×3 stem (arXiv:1603.05027)",
        "3×32×32",
        11172170,
        f"{_RESNET}:preact_resnet18",
    ),
    ModelInfo(
        "wrn-28-10",
        "WideResNet-28-10 (arXiv:1605.07146)",
        "3×32×32",
        36479194,
        "advbench.models.wideresnet:wrn_28_10",
    ),
    ModelInfo(
        "wide-resnet-34-10",
        "WideResNet-34-10 (arXiv:1605.07146), usual in adversarial training",
        "3×32×32",
        46160474,
        "advbench.models.wideresnet:wrn_34_10",
    ),
)

MODELS: dict[str, ModelInfo] = {info.name: info for info in _LISTED}
TORCHVISION, TIMM = "torchvision:", "timm:"
LIBRARIES = (TORCHVISION, TIMM)
"""Prefixes of the networks of other libraries, which are built with fresh weights."""
FORMS = f"{', '.join(sorted(MODELS))}, torchvision:NAME, timm:NAME or package.module:factory"
"""How a model to train may be named."""
