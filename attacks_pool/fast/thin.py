"""A convolution of images with few channels whose gradient to the image is as fast as its forward pass.

Libraries of kernels compute output channels sixteen at a time. The gradient to an image of one channel is a
convolution with one output channel, and most of the work would be thrown away; as a matrix product, whose
results are then added up where they belong, it has none to throw away.
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
"""Input channels up to which the product is faster."""
LARGEST = 49
"""Taps of a kernel, by those that its stride skips, up to which it is."""


class ThinConv(nn.Conv2d):
    """A convolution with frozen weights, whose backward pass is written for few input channels.

    With g (N, O, h, w) the gradient to the output, t = Wᵀ·g (N, C·K·K', h·w) says what each pixel of the
    output gives to each of the K·K' pixels that it has read, and the gradient to the image sums that up. The
    sums are those of the library, in another order.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Output (N, O, h, w) of images (N, C, H, W)."""
        return thin_conv2d(input, self.weight, self.bias, self)


class _Searched(ThinConv):
    """The same where nobody asks for the gradient to the weights, although they learn."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach()
        return thin_conv2d(input, self.weight.detach(), bias, self)


def thin_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """The convolution of ``conv`` with these weights, its backward pass as in :class:`ThinConv`.

    It is the library's where weights learn or come from elsewhere, the images perhaps, and for all that
    :class:`torch.autograd.Function` does not know: transforms of functions, images one by one.
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
    """Where channels lie one behind the other: the library adds up."""
    stride, padding, dilation = way
    shares = weight.flatten(1).t() @ gradient.flatten(2)
    return F.fold(_exact(shares), size, weight.shape[2:], dilation, padding, stride)


def _by_pixel(gradient: Tensor, weight: Tensor, size: Pair, way: Way) -> Tensor:
    """Where the channels of a pixel lie together: all images are one product, added up tap by tap."""
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
    """In float32 at least: there are up to K·K' terms to add up."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_thin(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution that :class:`ThinConv` can take the place of, and gains by it."""
    return type(module) is nn.Conv2d and has_few_channels(module)


def has_few_channels(conv: nn.Conv2d) -> bool:
    """Whether :func:`thin_conv2d` computes what ``conv`` does, and gains by it.

    Where kernels are large, their many shares of each pixel take longer to add up than the product saves.
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
    """Makes the thin convolutions of ``model``, whose weights are frozen, fast; changes and returns it."""
    for module in model.modules():
        if is_thin(module):
            module.__class__ = ThinConv
    return model


@contextlib.contextmanager
def searching(model: nn.Module) -> Iterator[None]:
    """Inside, the thin convolutions of ``model`` are fast, and their weights get no gradient.

    For networks of our own: a stranger's might look at its layers on the way.
    """
    thin_ones = [module for module in model.modules() if is_thin(module)]
    try:
        for module in thin_ones:
            module.__class__ = _Searched
        yield
    finally:
        for module in thin_ones:
            module.__class__ = nn.Conv2d
