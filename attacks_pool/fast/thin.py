"""A convolution for images with few channels, with a faster gradient with respect to the image.

Kernel libraries compute output channels sixteen at a time. The gradient with respect to a one-channel image
is a convolution with one output channel, which would waste most of that work. A matrix product followed by
scattered additions avoids the waste.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]
Way = tuple[Pair, Pair, Pair]
"""Stride, padding, dilation."""

FEW = 4
"""Largest number of input channels for which the product is faster."""
LARGEST = 49
"""Largest number of kernel elements, divided by the product of the strides, for which it is faster."""


class ThinConv(nn.Conv2d):
    """A convolution with frozen weights and a backward pass designed for few input channels.

    Let g (N, O, h, w) be the gradient with respect to the output. t = Wᵀ·g (N, C·K·K', h·w) holds the share
    of each output pixel in each of the K·K' pixels that it was computed from. The gradient with respect to
    the image sums these shares. The library computes the same sums in another order.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Output (N, O, h, w) of images (N, C, H, W)."""
        return thin_conv2d(input, self.weight, self.bias, self)


class _Searched(ThinConv):
    """A :class:`ThinConv` with trainable weights that get no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach()
        return thin_conv2d(input, self.weight.detach(), bias, self)


def thin_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """Convolution with the settings of ``conv`` and the backward pass of :class:`ThinConv`.

    It falls back to the library's convolution if the weights need gradients, and in all cases that
    :class:`torch.autograd.Function` does not support: function transforms, forward mode, unbatched images.
    """
    if not (
        isinstance(x, Tensor)
        and x.ndim == 4
        and x.device.type == "cpu"
        and x.is_floating_point()
        and weight.is_floating_point()
        and not any(one is not None and one.requires_grad for one in (weight, bias))
        and torch._C._functorch.maybe_current_level() is None
        and torch.autograd.forward_ad._current_level < 0
    ):
        plain: Tensor = conv._conv_forward(x, weight, bias)
        return plain
    output: Tensor = _Convolution.apply(x, weight, bias, conv.stride, conv.padding, conv.dilation)
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.way, ctx.size, ctx.dtype = (stride, padding, dilation), x.shape[2:], x.dtype
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        weight = weight.detach().to(gradient.dtype)
        by_pixel = gradient.is_contiguous(memory_format=torch.channels_last)
        found = (_by_pixel if by_pixel else _by_plane)(gradient, weight, ctx.size, ctx.way)
        return found.to(ctx.dtype), None, None, None, None, None


def _by_plane(gradient: Tensor, weight: Tensor, size: Pair, way: Way) -> Tensor:
    """For contiguous channel planes: the library adds up the shares."""
    stride, padding, dilation = way
    shares = weight.flatten(1).t() @ gradient.flatten(2)
    return F.fold(_exact(shares), size, weight.shape[2:], dilation, padding, stride)


def _by_pixel(gradient: Tensor, weight: Tensor, size: Pair, way: Way) -> Tensor:
    """For channels-last tensors: one product for all images, whose shares are added per kernel element."""
    stride, padding, dilation = way
    points, _, height, width = gradient.shape
    channels, kernel = weight.shape[1], weight.shape[2:]
    rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
    shares = (weight.flatten(1).t() @ rows.t()).view(channels, *kernel, points, height, width)
    padded = [length + 2 * pad for length, pad in zip(size, padding, strict=True)]
    found = _exact(gradient.new_zeros(())).new_zeros(channels, points, *padded)
    for i in range(kernel[0]):
        down = slice(i * dilation[0], i * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
        for j in range(kernel[1]):
            across = slice(j * dilation[1], j * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
            found[:, :, down, across] += shares[:, i, j]
    inside = found[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return inside.transpose(0, 1).contiguous()


def _exact(x: Tensor) -> Tensor:
    """Convert to at least float32, since up to K·K' terms are added up."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_thin(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution that :class:`ThinConv` can replace and make faster."""
    return type(module) is nn.Conv2d and has_few_channels(module)


def has_few_channels(conv: nn.Conv2d) -> bool:
    """Whether :func:`thin_conv2d` can compute ``conv``, and faster.

    For large kernels, adding up the many shares of each pixel takes longer than the product saves.
    """
    ways = (conv.stride, conv.padding, conv.dilation)
    if conv.groups != 1 or conv.padding_mode != "zeros" or "_conv_forward" in vars(conv):
        return False
    if not all(isinstance(way, tuple) and len(way) == 2 for way in ways):
        return False
    taps, apart = math.prod(conv.kernel_size), math.prod(conv.stride)
    small = taps <= LARGEST * apart and conv.in_channels * taps <= 4 * conv.out_channels * apart
    return small and conv.in_channels <= FEW


def thin(model: nn.Module) -> nn.Module:
    """Replace the convolutions of ``model`` with few channels by fast ones; its weights must be frozen."""
    for module in model.modules():
        if is_thin(module):
            module.__class__ = ThinConv
    return model


@contextlib.contextmanager
def searching(model: nn.Module) -> Iterator[None]:
    """Inside, convolutions of ``model`` with few channels are fast and their weights get no gradient.

    Only for this package's own networks, because other networks may inspect their layers.
    """
    thin_ones = [module for module in model.modules() if is_thin(module)]
    try:
        for module in thin_ones:
            module.__class__ = _Searched
        yield
    finally:
        for module in thin_ones:
            module.__class__ = nn.Conv2d
