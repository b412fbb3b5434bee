"""A convolution of images with few channels whose gradient to the image is as fast as its forward pass.

Libraries of kernels compute output channels in blocks of 16. The gradient to an image of one channel is a
convolution with one output channel, and fifteen sixteenths of a block would be thrown away; here b × b
neighbouring pixels take the places of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 16
"""Output channels that are computed together."""


class ThinConv(nn.Conv2d):
    """A convolution with frozen weights, whose backward pass is written for few input channels.

    With the stride S, padding P and a pixel q = b·Q + r, the gradient Σ w[o,c,k] · g[o,p] over o and all k
    with p·S + k − P = q is a convolution of g with stride b/S, for all r at once: its output channel (c, r)
    reads w[o, c, r + P − m·S] at a distance of m. The sums are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Output (N, O, H', W') of images (N, C, H, W)."""
        block, (height, width) = _block(self), input.shape[-2:]
        apart = block > 1 and not (height % block or width % block)
        if not apart or self.weight.requires_grad or input.device.type != "cpu":
            return super().forward(input)
        output: Tensor = _Convolution.apply(input, self.weight, self.bias, self.stride, self.padding, block)
        return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        block: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.block, ctx.size = stride, padding, block, x.shape[-2:]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        ways = [
            _Way(*way, ctx.block)
            for way in zip(weight.shape[2:], ctx.stride, ctx.padding, ctx.size, strict=True)
        ]
        after = [max(way.after - size, 0) for way, size in zip(ways, gradient.shape[2:], strict=True)]
        before = [way.before for way in ways]
        if after[0] > before[0] or after[1] > before[1]:
            gradient = F.pad(gradient, (0, after[1], 0, after[0]))
        kernel = _blocked(weight, *ways).to(gradient.dtype)
        steps = [way.block // way.stride for way in ways]
        blocks = F.conv2d(gradient, kernel, stride=steps, padding=before)
        blocks = blocks[:, :, : ways[0].blocks, : ways[1].blocks]
        return F.pixel_shuffle(blocks, ctx.block), None, None, None, None, None


@dataclass(frozen=True)
class _Way:
    """Down or across: the kernel's size, and of the input ``length`` pixels in blocks."""

    kernel: int
    stride: int
    padding: int
    length: int
    block: int

    @property
    def blocks(self) -> int:
        return self.length // self.block

    @property
    def before(self) -> int:
        """Pixels of the output before a block's first that reach it."""
        return (self.kernel - 1 - self.padding) // self.stride

    @property
    def taps(self) -> int:
        """Pixels of the output that reach one block."""
        return (self.block - 1 + self.padding) // self.stride + self.before + 1

    @property
    def after(self) -> int:
        """The last pixel of the output that the last block asks for, and one."""
        return (self.blocks - 1) * self.block // self.stride + self.taps - self.before

    def reads(self) -> list[list[int]]:
        """For each pixel of a block and each tap the place in the kernel, or its size where there is none."""
        places = [
            [r + self.padding - (tap - self.before) * self.stride for tap in range(self.taps)]
            for r in range(self.block)
        ]
        return [[k if 0 <= k < self.kernel else self.kernel for k in row] for row in places]


@lru_cache(maxsize=256)
def _reads(down: _Way, across: _Way) -> Tensor:
    """(b, b, M, M') where in a kernel with a row and a column of zeros, flattened, each tap is."""
    rows, columns = torch.tensor(down.reads()), torch.tensor(across.reads())
    return rows[:, None, :, None] * (across.kernel + 1) + columns[None, :, None, :]


def _blocked(weight: Tensor, down: _Way, across: _Way) -> Tensor:
    """(C·b², O, M, M'): the taps that each pixel of a block has of kernels (O, C, K, K')."""
    reads = _reads(down, across).to(weight.device)
    found = F.pad(weight, (0, 1, 0, 1)).flatten(2)[:, :, reads]
    return found.permute(1, 2, 3, 0, 4, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _block(conv: nn.Conv2d) -> int:
    """Pixels a side that fill the channels computed together; 1 where the stride does not divide them."""
    return next(
        (
            block
            for block in (4, 2)
            if block * block * conv.in_channels <= BLOCK and not any(block % stride for stride in conv.stride)
        ),
        1,
    )


def is_thin(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution that :class:`ThinConv` can take the place of, and gains by it."""
    if type(module) is not nn.Conv2d or module.groups != 1 or module.padding_mode != "zeros":
        return False
    if module.dilation != (1, 1) or isinstance(module.padding, str):
        return False
    inside = all(pad < size for pad, size in zip(module.padding, module.kernel_size, strict=True))
    return inside and _block(module) > 1


def thin(model: nn.Module) -> nn.Module:
    """Makes the thin convolutions of ``model``, whose weights are frozen, fast; changes and returns it."""
    for module in model.modules():
        if is_thin(module):
            module.__class__ = ThinConv
    return model
