"""Convolutions of few channels: the library's own results, forwards and backwards."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from attacks_pool.thin import ThinConv, is_thin, thin

SIZES = [(8, 8), (12, 8), (28, 28), (9, 8)]


def gradients(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of both modules to ``x``, once their outputs are known to be the same bits."""
    x = x.requires_grad_()
    outputs = first(x), second(x)
    assert torch.equal(*outputs)
    along = torch.rand(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return tuple(torch.autograd.grad(output, x, along)[0] for output in outputs)  # type: ignore[return-value]


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (3, 5), (7, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (4, 4), (1, 2), (4, 2)])
def test_gradients_are_those_of_the_library(kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    tried = 0
    for channels, padding, size in itertools.product((1, 2, 3, 4), ((0, 0), (1, 1), (2, 1), (3, 3)), SIZES):
        conv = nn.Conv2d(channels, 5, kernel, stride=stride, padding=padding, bias=channels != 2).double()
        conv.requires_grad_(False)
        if is_thin(conv):
            x = torch.rand(3, channels, *size, dtype=torch.float64)
            ours, library = gradients(thin(deepcopy(conv)), conv, x)
            torch.testing.assert_close(ours, library, rtol=1e-10, atol=1e-10)
            tried += 1
    assert tried


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(5, 8, 3),
        nn.Conv2d(2, 8, 3, groups=2),
        nn.Conv2d(1, 8, 3, dilation=2),
        nn.Conv2d(1, 8, 3, padding="same"),
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 8, 3, padding=3),
        nn.Conv2d(1, 8, 3, stride=3),
        nn.Conv2d(1, 8, 5, stride=8),
    ],
)
def test_what_it_is_not_written_for_stays(conv: nn.Conv2d) -> None:
    assert type(thin(conv)) is nn.Conv2d


def test_weights_that_learn_get_their_gradient() -> None:
    conv, twin = thin(nn.Conv2d(1, 16, 3)), nn.Conv2d(1, 16, 3)
    twin.load_state_dict(conv.state_dict())
    assert isinstance(conv, ThinConv)
    for module in (conv, twin):
        module(torch.ones(2, 1, 8, 8)).square().sum().backward()
    assert torch.equal(conv.weight.grad, twin.weight.grad)  # type: ignore[arg-type]


def test_gradients_of_gradients_are_right() -> None:
    conv = thin(nn.Conv2d(1, 4, 3, padding=1).double().requires_grad_(False))
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda images: conv(images).tanh(), x)
