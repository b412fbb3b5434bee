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
"""How many standard deviations from its middle the kernel ends."""


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
            "kernel": Knob(15, "pixels a side of the kernel, at most a quarter of the image's", low=1),
        },
    )
)
def tim(model: nn.Module, x: Tensor, y: Tensor, *, kernel: int, **knobs: Any) -> Tensor:
    """Translation-invariant attack: v_{k+1} = decay · v_k + W∗g/‖W∗g‖₁, a signed step along v_{k+1}.

    Dong et al., arXiv:1904.02884 (TI-MI-FGSM). W is a Gaussian kernel that ends at 3 standard deviations and
    acts on each channel. Its 15 pixels are meant for large images: it is cut to an odd number of at most a
    quarter of the image's shorter side, but not below 3. Shapes as in :class:`attacks_pool.Attack`.
    """
    weights = gaussian(cut(kernel, min(x.shape[2:]))).to(x.device)

    def slope(model: nn.Module, points: Points, _draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        gradient, logits, _values = input_gradient(model, points.x_adv, points.y, cross_entropy)
        return smooth(gradient, weights), logits

    return gradient_ascent(model, x, y, norm="linf", ways=Ways(slope=slope), **knobs)


def cut(kernel: int, side: int) -> int:
    """The largest odd number of at most ``kernel`` and a quarter of ``side``, or 3 where that is less."""
    longest = min(kernel, max(3, side // 4))
    return longest - 1 + longest % 2


def gaussian(length: int) -> Tensor:
    """(length,) weights of a Gaussian that sum to 1."""
    if length == 1:
        return torch.ones(1)
    weights = torch.exp(-torch.linspace(-REACH, REACH, length).square() / 2)
    return weights / weights.sum()


def smooth(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient (N, C, H, W), each channel convolved down and across; zero outside the image."""
    size, channels, height, width = gradient.shape
    # The scale matters to no step; without it tiny gradients would vanish under the kernel.
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
    line = weights.to(gradient.dtype)
    flat = scaled.reshape(size * channels, 1, height, width)
    flat = F.conv2d(flat, line.view(1, 1, -1, 1), padding=(len(line) // 2, 0))
    flat = F.conv2d(flat, line.view(1, 1, 1, -1), padding=(0, len(line) // 2))
    return flat.view(size, channels, height, width)
