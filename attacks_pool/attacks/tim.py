"""TI-FGSM: momentum over gradients smoothed by a Gaussian kernel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import metadata
from attacks_pool.attacks.nim import KNOBS
from attacks_pool.losses import cross_entropy
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.search.ascent import Points, Ways, gradient_ascent, input_gradient

REACH = 3
"""Where the kernel is cut off, in standard deviations from its middle."""


@register(
    AttackInfo(
        name="tim",
        family="momentum",
        norm="linf",
        access="white-box",
        paper="1904.02884",
        reduced_precision=True,
        cost=metadata.gradient_steps,
        knobs={
            **KNOBS,
            "kernel": Knob(15, "side of the kernel in pixels, at most a quarter of the image's", low=1),
        },
    )
)
def tim(model: nn.Module, x: Tensor, y: Tensor, *, kernel: int, **knobs: Any) -> Tensor:
    """Translation-invariant attack: v_{k+1} = decay · v_k + W∗g/‖W∗g‖₁, a signed step along v_{k+1}.

    Dong et al., arXiv:1904.02884 (TI-MI-FGSM). W is a Gaussian kernel, cut off at 3 standard deviations, that
    acts on each channel. Its 15 pixels suit large images: its side is limited to an odd number of at most a
    quarter of the image's shorter side, but at least 3. Shapes as in :class:`attacks_pool.Attack`.
    """
    weights = gaussian(cut(kernel, min(x.shape[2:]))).to(x.device)

    def slope(model: nn.Module, points: Points, _draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        gradient, logits, _values = input_gradient(model, points.x_adv, points.y, cross_entropy)
        return smooth(gradient, weights), logits

    return gradient_ascent(model, x, y, norm="linf", ways=Ways(slope=slope), **knobs)


def cut(kernel: int, side: int) -> int:
    """The largest odd number up to ``kernel`` and up to a quarter of ``side``, or 3 if that is less."""
    longest = min(kernel, max(3, side // 4))
    return longest - 1 + longest % 2


def gaussian(length: int) -> Tensor:
    """(length,) weights of a Gaussian that sum to 1."""
    if length == 1:
        return torch.ones(1)
    weights = torch.exp(-torch.linspace(-REACH, REACH, length).square() / 2)
    return weights / weights.sum()


def smooth(gradient: Tensor, weights: Tensor) -> Tensor:
    """Convolve each channel of the gradient (N, C, H, W) along both axes, with zeros outside the image."""
    size, channels, height, width = gradient.shape
    # Steps do not depend on the scale; without scaling, tiny gradients would underflow.
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
    line = weights.to(gradient.dtype)
    flat = scaled.reshape(size * channels, 1, height, width)
    flat = F.conv2d(flat, line.view(1, 1, -1, 1), padding=(len(line) // 2, 0))
    flat = F.conv2d(flat, line.view(1, 1, 1, -1), padding=(0, len(line) // 2))
    return flat.view(size, channels, height, width)
