"""Convolutions of few channels: the library's own results, forwards and backwards."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from attacks_pool.fast.thin import ThinConv, is_thin, searching, thin

SIZES = [(8, 8), (12, 9), (28, 28)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def gradients(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of both modules to ``x``, once their outputs are known to be the same bits."""
    x = x.requires_grad_()
    outputs = first(x), second(x)
    assert torch.equal(*outputs)
    along = torch.rand(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return tuple(torch.autograd.grad(output, x, along)[0] for output in outputs)  # type: ignore[return-value]


@pytest.mark.quick(r"(planes|pixels)-stride[02]-.*")
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (3, 5), (7, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 4), (1, 2)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planes", "pixels"])
def test_gradients_are_those_of_the_library(
    kernel: tuple[int, int], stride: tuple[int, int], layout: torch.memory_format
) -> None:
    for channels, padding, size in itertools.product((1, 3, 4), ((0, 0), (1, 1), (2, 1), (3, 3)), SIZES):
        dilation = (1, 1) if channels < 4 or max(kernel) > 3 else (2, 1)
        conv = nn.Conv2d(
            channels, 64, kernel, stride=stride, padding=padding, dilation=dilation, bias=channels != 3
        )
        conv = conv.double().requires_grad_(False).to(memory_format=layout)
        x = torch.rand(2, channels, *size, dtype=torch.float64).contiguous(memory_format=layout)
        twin = thin(deepcopy(conv))
        assert isinstance(twin, ThinConv)
        ours, library = gradients(twin, conv, x)
        torch.testing.assert_close(ours, library, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(5, 8, 3),
        nn.Conv2d(2, 8, 3, groups=2),
        nn.Conv2d(1, 8, 3, padding="same"),
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"),
    ],
)
def test_what_it_is_not_written_for_stays(conv: nn.Conv2d) -> None:
    assert type(thin(conv)) is nn.Conv2d


@pytest.mark.parametrize("layout", LAYOUTS, ids=["planes", "pixels"])
def test_rounding_is_no_coarser_than_the_library_s(layout: torch.memory_format) -> None:
    """What is added up of bfloat16 products is added up in float32."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 32, 5, padding=2).requires_grad_(False).to(torch.bfloat16).to(memory_format=layout)
    x = torch.rand(4, 3, 16, 16).to(torch.bfloat16).contiguous(memory_format=layout)
    ours, library = gradients(thin(deepcopy(conv)), conv, x)
    exact, _ = gradients(deepcopy(conv).double(), deepcopy(conv).double(), x.double())
    errors = [(found.double() - exact).abs().mean() for found in (ours, library)]
    assert errors[0] <= 1.5 * errors[1]


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


def test_a_search_of_our_own_leaves_the_network_as_it_was() -> None:
    """Also where the search fails."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    x = torch.rand(8, 1, 8, 8, requires_grad=True)
    (plain,) = torch.autograd.grad(model(x).square().sum(), x)
    with searching(model):
        assert isinstance(model[0], ThinConv)
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, plain)
    with pytest.raises(RuntimeError, match="input"), searching(model):
        model(torch.rand(8, 2, 8, 8))
    assert type(model[0]) is nn.Conv2d
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_the_library_does_what_a_function_of_autograd_cannot() -> None:
    """Images one by one, transforms of functions, derivatives forwards, weights made of the images."""
    conv = thin(nn.Conv2d(1, 16, 3).double().requires_grad_(False))
    plain = nn.Conv2d(1, 16, 3).double().requires_grad_(False)
    plain.load_state_dict(conv.state_dict())
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)

    def by_image(module: nn.Module) -> Tensor:
        return torch.stack([module(image) for image in x])

    def mapped(module: nn.Module) -> Tensor:
        return torch.func.vmap(lambda image: module(image[None])[0])(x)

    def slope(module: nn.Module) -> Tensor:
        return torch.func.grad(lambda images: module(images).tanh().sum())(x)

    def forwards(module: nn.Module) -> Tensor:
        return torch.func.jvp(module, (x,), (torch.ones_like(x),))[1]

    def dynamic(module: nn.Module) -> Tensor:
        images = x.clone().requires_grad_()
        weights = {"weight": plain.weight * (1 + images.mean()), "bias": plain.bias}
        output = torch.func.functional_call(module, weights, (images,))
        return torch.autograd.grad(output.square().sum(), images)[0]

    for look in (by_image, mapped, slope, forwards, dynamic):
        torch.testing.assert_close(look(conv), look(plain))


@pytest.mark.parametrize(
    ("conv", "taken"),
    [
        (nn.Conv2d(3, 64, 3, padding=1), True),
        (nn.Conv2d(3, 64, 7, stride=2), True),
        (nn.Conv2d(3, 192, 16, stride=16), True),
        (nn.Conv2d(3, 3, 15), False),
        (nn.Conv2d(1, 6, 5), False),
        (nn.Conv2d(3, 64, 21), False),
    ],
)
def test_kernels_with_too_many_taps_stay(conv: nn.Conv2d, taken: bool) -> None:
    assert is_thin(conv) is taken
