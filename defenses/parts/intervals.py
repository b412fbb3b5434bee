"""Intervals of a network's intermediate results, through which gradients flow to its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-36
"""Added below a square root, whose slope at 0 is infinite."""

Map = Callable[[Tensor], Tensor]


@dataclass
class Interval:
    """Elementwise bounds ``low`` and ``high`` of one tensor (N, ...)."""

    low: Tensor
    high: Tensor

    def increasing(self, function: Callable[[Tensor], Any]) -> Interval:
        """The image under a function that never decreases in any input."""
        return Interval(function(self.low), function(self.high))

    def selecting(self, function: Callable[[Tensor], Any]) -> Interval:
        """The image under a change of shape or a selection of values."""
        return self.increasing(function)

    def falling_and_rising(self, function: Map, lowest: float) -> Interval:
        """The image under a scalar function that falls up to ``lowest`` and rises from there."""
        bottom = torch.full_like(self.low, lowest).maximum(self.low).minimum(self.high)
        return Interval(function(bottom), torch.maximum(function(self.low), function(self.high)))

    def affine(self, weight: Tensor, bias: Tensor | None, apply: Callable[..., Tensor]) -> Interval:
        """The image under ``apply(x, weight, bias)``, which is linear in x and weight."""
        middle, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        return around(apply(middle, weight, bias), apply(radius, weight.abs(), None))

    def scaled(self, scale: Tensor, shift: Tensor) -> Interval:
        """The image under x · scale + shift, elementwise."""
        ends = self.low * scale + shift, self.high * scale + shift
        return Interval(torch.minimum(*ends), torch.maximum(*ends))

    def plus(self, other: Interval) -> Interval:
        """The sum of two results."""
        return Interval(self.low + other.low, self.high + other.high)

    def minus(self, other: Interval) -> Interval:
        """The difference of two results."""
        return Interval(self.low - other.high, self.high - other.low)


@dataclass
class Euclidean(Interval):
    """An l2 ball of images: for each point, all x with Σ ((x − middle) / spread)² ≤ 1.

    The first affine layer gets the exact bounds of the ball; any other operation gets the interval around it.
    """

    middle: Tensor
    spread: Tensor

    @classmethod
    def of(cls, middle: Tensor, spread: Tensor) -> Self:
        """The ball with these half-axes (N, ...)."""
        return cls(middle - spread, middle + spread, middle, spread)

    def selecting(self, function: Callable[[Tensor], Any]) -> Interval:
        """The ball in another shape."""
        return Euclidean.of(function(self.middle), function(self.spread))

    def affine(self, weight: Tensor, bias: Tensor | None, apply: Callable[..., Tensor]) -> Interval:
        """The exact bounds: by Cauchy and Schwarz, the radius is the length of weights times ``spread``."""
        length = (apply(self.spread.square(), weight.square(), None) + SMALLEST).sqrt()
        return around(apply(self.middle, weight, bias), length)

    def scaled(self, scale: Tensor, shift: Tensor) -> Interval:
        """The scaled ball."""
        return Euclidean.of(self.middle * scale + shift, self.spread * scale.abs())


def around(middle: Tensor, radius: Tensor) -> Interval:
    """The interval with this middle and radius."""
    return Interval(middle - radius, middle + radius)


def ball(x: Tensor, norm: str, eps: float) -> Interval:
    """All images at most ``eps`` away from images ``x`` (N, C, H, W) in linf, cut with [0, 1], or in l2."""
    if norm == "linf":
        return Interval((x - eps).clamp_min(0.0), (x + eps).clamp_max(1.0))
    return Euclidean.of(x, torch.full_like(x, eps))


def worst_of_linear(x: Interval, weight: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Upper bounds (N, K) of z_k − z_y for logits z = x Wᵀ + b, of the differences themselves.

    Args:
        x: inputs (N, D) of the layer.
        weight: W (K, D).
        bias: b (K,).
        y: labels (N,).
    """
    off = weight[None] - weight[y][:, None]
    middle, radius = (x.low + x.high) / 2, (x.high - x.low) / 2
    upper = (off @ middle[:, :, None] + off.abs() @ radius[:, :, None]).squeeze(2)
    return upper if bias is None else upper + bias[None] - bias[y][:, None]


def worst_of_logits(z: Interval, y: Tensor) -> Tensor:
    """Upper bounds (N, K) of z_k − z_y for logits in an interval; 0 at the label."""
    apart = z.high - z.low.gather(1, y[:, None])
    return apart.scatter(1, y[:, None], 0.0)


LOWEST: dict[str, float] = {
    "gelu": -0.7517915247,
    "gelu_tanh": -0.7524614,
    "silu": -1.2784645428,
    "mish": -1.1924338,
    "hardswish": -1.5,
}
"""Where activations that are not monotone are lowest."""


def activated(x: Interval, name: str, **how: Any) -> Interval | None:
    """The image under an activation of torch.nn.functional that has settings; None for an unknown one."""
    if name == "gelu":
        lowest = LOWEST["gelu_tanh" if how.get("approximate") == "tanh" else "gelu"]
        return x.falling_and_rising(lambda values: F.gelu(values, **how), lowest)
    if name in LOWEST:
        return x.falling_and_rising(getattr(F, name), LOWEST[name])
    if name == "leaky_relu" and how.get("negative_slope", 0.01) >= 0:
        return x.increasing(lambda values: F.leaky_relu(values, how.get("negative_slope", 0.01)))
    if name == "elu" and how.get("alpha", 1.0) >= 0:
        return x.increasing(lambda values: F.elu(values, how.get("alpha", 1.0)))
    return None
