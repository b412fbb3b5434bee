"""Convolutions of few channels: the library's own results, forwards and backwards."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks_pool import pool
from attacks_pool.thin import ThinConv, thin

SIZES = [(8, 8), (12, 9), (28, 28)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def gradients(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of both modules to ``x``, once their outputs are known to be the same bits."""
    x = x.requires_grad_()
    outputs = first(x), second(x)
    assert torch.equal(*outputs)
    along = torch.rand(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return tuple(torch.autograd.grad(output, x, along)[0] for output in outputs)  # type: ignore[return-value]


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (3, 5), (7, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 4), (1, 2)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["planes", "pixels"])
def test_gradients_are_those_of_the_library(
    kernel: tuple[int, int], stride: tuple[int, int], layout: torch.memory_format
) -> None:
    for channels, padding, size in itertools.product((1, 3, 4), ((0, 0), (1, 1), (2, 1), (3, 3)), SIZES):
        dilation = (1, 1) if channels < 4 or max(kernel) > 3 else (2, 1)
        conv = nn.Conv2d(
            channels, 5, kernel, stride=stride, padding=padding, dilation=dilation, bias=channels != 3
        )
        conv = conv.double().requires_grad_(False).to(memory_format=layout)
        x = torch.rand(3, channels, *size, dtype=torch.float64).contiguous(memory_format=layout)
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


def test_attacks_get_the_fast_gradient_and_leave_the_network_as_it_was() -> None:
    """Afterwards it has its very classes, and its weights learn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    inside = []

    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            inside.append(type(self.inner[0]))
            logits: Tensor = self.inner(x)
            return logits

    pool.get("pgd", budget="digits", steps=3)(Looked(), x, y)
    assert all(issubclass(kind, ThinConv) for kind in inside)
    assert type(model[0]) is nn.Conv2d
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_a_strangers_attack_may_ask_for_gradients_to_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 10))
    seen = []

    def stranger(model: nn.Module, x: Tensor, y: Tensor, **_: object) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        seen.extend(torch.autograd.grad(loss, list(model.parameters())))
        return x

    attack = replace(pool.get("fgsm", budget="digits"), function=stranger)
    attack(model, torch.rand(4, 1, 8, 8), torch.arange(4))
    assert seen[0].abs().max() > 0
