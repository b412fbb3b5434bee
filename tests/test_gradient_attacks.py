"""The budgeted gradient attacks: closed forms and slow references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import count_passes, pool
from attacks_pool.attacks.dim import resize_and_pad
from attacks_pool.attacks.mt_pgd import likeliest_others
from attacks_pool.attacks.tim import cut, gaussian, smooth
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.norms import project, random_point
from attacks_pool.search.ascent import wrong

Batch = tuple[nn.Module, Tensor, Tensor]

# The l1 ball.


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 16, 16)])
@pytest.mark.parametrize("eps", [0.05, 1.0, 500.0])
def test_l1_projection_is_the_nearest_point(shape: tuple[int, int, int], eps: float) -> None:
    """Against bisection on the multiplier, one point at a time, some pixels at 0 and 1."""
    draws = keyed_generator("l1", eps)
    for spread in (0.0, 0.01, 0.3, 3.0):
        x = (1.4 * torch.rand(6, *shape, generator=draws, dtype=torch.float64) - 0.2).clamp(0, 1)
        away = x + spread * torch.randn(x.shape, generator=draws, dtype=torch.float64)
        found = project(away, x, eps, "l1")
        for i in range(len(x)):
            assert torch.allclose(found[i], slow_projection(away[i], x[i], eps), rtol=0, atol=1e-9)


def slow_projection(away: Tensor, x: Tensor, eps: float) -> Tensor:
    delta = away - x
    room = torch.where(delta > 0, 1 - x, x)

    def kept(threshold: float) -> Tensor:
        return torch.minimum((delta.abs() - threshold).clamp_min(0), room)

    low, high = 0.0, float(delta.abs().max())
    if float(kept(0.0).sum()) <= eps:
        return x + delta.sign() * kept(0.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(kept(middle).sum()) > eps else (low, middle)
    return x + delta.sign() * kept(high)


def test_l1_start_is_inside_sparse_and_random() -> None:
    x = torch.rand(50, 3, 16, 16, generator=keyed_generator(0))
    first, second = (random_point(x, 4.0, "l1", keyed_generator(seed)) for seed in (1, 2))
    delta = (first - x).flatten(1)
    assert float(delta.abs().sum(1).max()) <= 4 * (1 + 1e-5)
    assert float(delta.abs().sum(1).min()) > 3.99
    assert float((delta.abs() > 1e-6).float().mean()) < 0.05
    assert not torch.equal(first, second)


# Transforms.


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13), (1, 1)])
def test_resize_and_pad_equals_interpolation(height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=keyed_generator(0))
    sizes = set()
    for drawn in torch.rand(40, 4, generator=keyed_generator(1)).split(1):
        rows, columns = resize_and_pad(drawn, height, width, 0.5, 0.7)
        shown = rows[:, None] @ image @ columns[:, None].mT
        tall, wide = int((rows.sum(2) > 0).sum()), int((columns.sum(2) > 0).sum())
        top, left = int((rows[0].sum(1) > 0).int().argmax()), int((columns[0].sum(1) > 0).int().argmax())
        expected = torch.zeros_like(image)
        small = F.interpolate(image, size=(tall, wide), mode="bilinear", align_corners=False)
        expected[..., top : top + tall, left : left + wide] = small
        assert torch.allclose(shown, expected, atol=1e-5)
        assert tall >= int(0.5 * height)
        sizes.add(tall)
    assert height == 1 or len(sizes) > 2


def test_kernel_shrinks_with_the_image() -> None:
    assert [cut(15, side) for side in (1, 8, 28, 32, 224)] == [3, 3, 7, 7, 15]
    assert [cut(kernel, 224) for kernel in (1, 2, 4, 5)] == [1, 1, 3, 5]
    assert gaussian(1).tolist() == [1.0]


def test_smoothing_spreads_a_spike_over_its_own_channel() -> None:
    spike = torch.zeros(1, 3, 9, 9)
    spike[0, 1, 4, 4] = 1e-30
    weights = gaussian(5)
    spread = smooth(spike, weights)
    assert torch.allclose(spread[0, 1, 2:7, 2:7], weights[:, None] * weights)
    assert not spread[0, [0, 2]].any()


# Slow references.


class Smooth(nn.Module):
    """Logits (N, 4) in float64 of images (N, 1, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        draws = keyed_generator("smooth")
        self.inner = torch.randn(16, 12, generator=draws, dtype=torch.float64)
        self.outer = torch.randn(12, 4, generator=draws, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return (x.double().flatten(1) @ self.inner).tanh() @ self.outer


@pytest.fixture(scope="module")
def smooth_batch() -> Batch:
    """Points that the network gets right."""
    model = Smooth()
    x = 0.2 + 0.6 * torch.rand(8, 1, 4, 4, generator=keyed_generator("x"))
    return model, x, model(x).argmax(1)


def slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def test_nim_equals_the_slow_reference(smooth_batch: Batch) -> None:
    """x_nes = x_k + α·μ·v_k, v_{k+1} = μ·v_k + ∇/mean|∇|, x_{k+1} = Π(x_k + α · sign v_{k+1})."""
    model, x, y = smooth_batch
    found = pool.get("nim", eps=0.1, steps=6, step_size=0.03, decay=0.8)(model, x, y)
    x_k, v = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        g = slope(model, x_k + 0.03 * 0.8 * v, y)
        v = 0.8 * v + g / g.abs().mean(dim=(1, 2, 3), keepdim=True)
        x_k = (x_k + 0.03 * v.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    assert torch.allclose(found, x_k, rtol=0, atol=1e-6)


def test_attacks_without_their_twist_are_the_plain_ones(smooth_batch: Batch) -> None:
    model, x, y = smooth_batch
    given: dict[str, Any] = {"eps": 0.1, "steps": 6}
    momentum = pool.get("mim", **given)(model, x, y)
    for name, knobs in {"dim": {"diversity_prob": 0.0}, "tim": {"kernel": 1}, "vmi": {"beta": 1e-9}}.items():
        assert torch.allclose(pool.get(name, **given, **knobs)(model, x, y), momentum, rtol=0, atol=1e-6)
        assert not torch.allclose(pool.get(name, **given)(model, x, y), momentum, rtol=0, atol=1e-3)
    plain, averaged = (
        pool.get(name, **given)(model, x, y, generator=keyed_generator(0)) for name in ("pgd", "eotpgd")
    )
    assert torch.allclose(plain, averaged, rtol=0, atol=1e-6)
    single = pool.get("rfgsm", eps=0.1, random_share=0.0)(model, x, y)
    assert torch.equal(single, pool.get("fgsm", eps=0.1)(model, x, y))


def test_random_single_steps_go_where_they_say(smooth_batch: Batch) -> None:
    """R+FGSM ends ±(eps/2) ± (eps/2) away; Fast FGSM, whose step exceeds eps, goes up the gradient."""
    model, x, y = smooth_batch
    moved = (pool.get("rfgsm", eps=0.1)(model, x, y) - x).abs()
    assert torch.isclose(moved, torch.tensor(0.1), atol=1e-6).logical_or(moved < 1e-6).all()
    assert 0.2 < float((moved > 0.05).float().mean()) < 0.8
    moved = pool.get("ffgsm", eps=0.1)(model, x, y) - x
    assert float(moved.abs().min()) >= 0.025 - 1e-6


class Dice(nn.Module):
    """Three times in four the gradient points the wrong way; on average it points the right one."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        total = x.flatten(1).sum(1) - 8.5
        score = total * torch.where(torch.rand(()) < 1 / 4, 10.0, -1.0)
        return torch.stack([0 * score, score], dim=1)


def test_eot_sees_through_random_gradients() -> None:
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    ends = {}
    for name, knobs in {"pgd": {}, "eotpgd": {"eot_steps": 60}}.items():
        attack = pool.get(name, eps=0.1, steps=8, step_size=0.02, random_start=False, loss="margin", **knobs)
        ends[name] = float((attack(Dice(), x, y, generator=keyed_generator(1)) - x).mean())
    assert ends["eotpgd"] > 0.09
    assert ends["pgd"] < 0.05


# Many targets.


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_targets_are_the_likeliest_others(classes: int) -> None:
    logits = torch.randn(5, classes, generator=keyed_generator(classes))
    logits[0, 1:], y = -torch.inf, torch.arange(5) % classes
    aims = likeliest_others(lambda _x: logits, logits, y, 9)  # type: ignore[arg-type]
    assert aims.shape == (5, min(9, classes - 1))
    assert not (aims == y[:, None]).any()
    ranked = logits[1:].gather(1, aims[1:])
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()


class Shadow(nn.Module):
    """Class 1 is second at the clean point but out of reach; only class 2 can win."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 3)."""
        mean = x.flatten(1).mean(1)
        return torch.stack([0 * mean + 1, 0.9 + 0.02 * (0.5 - mean), 0.4 + 7 * (mean - 0.5)], dim=1)


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_target_that_is_not_the_nearest_is_found(early_stop: bool) -> None:
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.long)
    found = {}
    for targets in (1, 2):
        attack = pool.get("mt-pgd", eps=0.1, steps=10, targets=targets)
        found[targets] = wrong(Shadow()(attack(Shadow(), x, y, early_stop=early_stop)), y)
    assert not found[1].any()
    assert found[2].all()


def test_success_with_one_target_stops_the_others() -> None:
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.long)
    spent = []
    for early_stop in (False, True):
        model = Shadow()
        with count_passes(model) as passes:
            pool.get("mt-pgd", eps=0.1, steps=40, restarts=2)(model, x, y, early_stop=early_stop)
        spent.append(passes.backwards)
    assert spent[0] == 3 * 2 * 40 * 2
    # Class 1 never wins, so alone it would be searched for 80 steps.
    assert spent[1] < spent[0] / 2
