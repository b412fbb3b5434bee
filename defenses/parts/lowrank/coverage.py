"""How much of a network its adapters reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attacks_pool.calling.guard import evaluation_mode, unfused_attention
from attacks_pool.calling.logits import image_type
from attacks_pool.calling.randomness import isolated_randomness
from defenses.parts.lowrank.layer import AdaptedLayer, check_batch
from defenses.parts.lowrank.routing import Route, Routing

SAMPLES = 3
"""Images that are passed; a prime number, which no other dimension of a network is likely to divide by."""


@dataclass(frozen=True)
class Coverage:
    """The shares of a network's parameters and multiply-adds, each in [0, 1], that are under adapters."""

    parameters: float
    multiply_adds: float

    @property
    def most(self) -> float:
        """The larger share."""
        return max(self.parameters, self.multiply_adds)

    @property
    def least(self) -> float:
        """The smaller share."""
        return min(self.parameters, self.multiply_adds)

    def __str__(self) -> str:
        return f"{self.parameters:.1%} of the parameters and {self.multiply_adds:.1%} of the multiply-adds"


def coverage_of(model: nn.Module, routing: Routing, x: Tensor) -> Coverage:
    """Measure which share of ``model`` its adapters reach for images ``x`` (N, C, H, W); nothing is changed.

    Only layers count that the network calls: what reads a layer's weight past the layer has no adapter. The
    parameters of adapters themselves do not count.

    Raises:
        InputError: the network changes the size of the batch before an adapted layer.
    """
    own = {id(one) for layer in model.modules() if isinstance(layer, AdaptedLayer) for one in _pair(layer)}
    parameters = sum(one.numel() for one in model.parameters() if id(one) not in own)
    with routing.along(Route()):
        kind = image_type(model, x)
    x = x[torch.arange(SAMPLES, device=x.device) % len(x)].to(kind)
    counts: dict[AdaptedLayer, int] = {}

    def count(layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        assert isinstance(layer, AdaptedLayer)
        result = output if isinstance(output, Tensor) else output[0]
        check_batch(result.shape[layer.sample_dimension], SAMPLES)
        # Each weight is used once for each position of the output.
        channels = result.shape[1] if isinstance(layer, nn.Conv2d) else result.shape[-1]
        size = sum(weight.numel() for weight in layer.weights)
        counts[layer] = counts.get(layer, 0) + size * (result.numel() // channels)

    layers = [layer for layer in model.modules() if isinstance(layer, AdaptedLayer)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with (
            torch.no_grad(),
            isolated_randomness(0, x.device),
            evaluation_mode(model),
            routing.along(Route()),
            unfused_attention(),
            FlopCounterMode(display=False) as counter,
        ):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    total = max(counter.get_total_flops() // 2, sum(counts.values()), 1)
    weights = {id(weight): weight.numel() for layer in counts for weight in layer.weights}
    return Coverage(sum(weights.values()) / max(parameters, 1), sum(counts.values()) / total)


def _pair(layer: AdaptedLayer) -> list[nn.Parameter]:
    """The parameters of a layer's adapters."""
    return [*layer.down, *layer.up]
