"""The searches against slow references in the papers' notation: one point at a time, plain loops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import count_passes, pool
from attacks_pool.calling.guard import buffers_kept, evaluation_mode, untouched
from attacks_pool.calling.randomness import draw_seed, isolated_randomness, key_seed, keyed_generator
from attacks_pool.losses import LOSSES, cross_entropy, dlr, margin
from attacks_pool.norms import project, random_point, steepest
from attacks_pool.search.ascent import gradient_ascent, input_gradient, wrong
from attacks_pool.search.auto_pgd import adaptive_ascent, checkpoints

N, CLASSES = 8, 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small smooth network in float64, so that no rounding turns a sign."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    with torch.no_grad():
        made[3].weight.mul_(3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Points that the network gets right, some pixels at 0 and 1."""
    x = 1.2 * torch.rand(N, 2, 4, 4, generator=keyed_generator("points"), dtype=torch.float64) - 0.1
    x = x.clamp(0, 1)
    return x, model(x).argmax(1)


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce") -> Tensor:
    """∇ of the loss at one point (C, H, W)."""
    x = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(LOSSES[loss](model(x[None]), y[None]).sum(), x)
    return found


def clip(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """Π onto the linf ball and the box, element by element."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def slow_pgd(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int, alpha: float
) -> list[Tensor]:
    """x_{k+1} = Π(x_k + α · sign ∇ L(x_k)); all iterates from the start on."""
    iterates = [start]
    for _ in range(steps):
        x_k = iterates[-1]
        iterates.append(clip(x_k + alpha * gradient(model, x_k, y).sign(), x, eps))
    return iterates


def slow_mim(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, alpha: float, mu: float
) -> list[Tensor]:
    """g_{k+1} = μ · g_k + ∇/‖∇‖₁, x_{k+1} = Π(x_k + α · sign g_{k+1}); all iterates."""
    iterates, g = [x], torch.zeros_like(x)
    for _ in range(steps):
        slope = gradient(model, iterates[-1], y)
        g = mu * g + slope / slope.abs().sum()
        iterates.append(clip(iterates[-1] + alpha * g.sign(), x, eps))
    return iterates


def searched(model: nn.Module, x: Tensor, y: Tensor, *, key: Any = 0, **more: Any) -> Tensor:
    """Ten steps of 0.03 in the linf ball of 0.2, but for what is given; ``key`` seeds the draws."""
    given: dict[str, Any] = {"norm": "linf", "eps": 0.2, "steps": 10, "step_size": 0.03, **more}
    return gradient_ascent(model, x, y, **given, generator=keyed_generator(key))


def close(first: Tensor, second: Tensor) -> bool:
    """Whether they are equal but for rounding to float32."""
    return torch.allclose(first, second, rtol=0, atol=1e-6)


def slow_apgd(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int, rho: float
) -> Tensor:
    """Algorithm 1 of arXiv:2003.01690 for one point: x_max."""

    def f(point: Tensor) -> float:
        return float(F.cross_entropy(model(point[None]).float(), y[None]))

    W = [0, *published_checkpoints(steps)]
    x_k, x_before, x_max, eta, halved = start, start, start, 2 * eps, True
    values = [f(start)]
    f_max = f_max_before = values[0]
    for k in range(steps):
        if k in W[1:]:
            last = W[W.index(k) - 1]
            rose = sum(values[i + 1] > values[i] for i in range(last, k))
            halve = rose <= rho * (k - last) or (not halved and f_max == f_max_before)
            halved, f_max_before = halve, f_max
            if halve:
                eta, x_k = eta / 2, x_max
        z = clip(x_k + eta * gradient(model, x_k, y).sign(), x, eps)
        alpha = 0.75 if k > 0 else 1.0
        x_k, x_before = clip(x_k + alpha * (z - x_k) + (1 - alpha) * (x_k - x_before), x, eps), x_k
        values.append(f(x_k))
        if values[-1] > f_max:
            f_max, x_max = values[-1], x_k
    return x_max


def published_checkpoints(steps: int) -> list[int]:
    """w_j = ⌈p_j · N⌉ with p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), p_0 = 0, p_1 = 0.22."""
    shares = [0, 22]
    while shares[-1] <= 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [-(-share * steps // 100) for share in shares[1:] if share <= 100]


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_and_bim_equal_the_slow_reference(
    random_start: bool, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    start = random_point(x, 0.2, "linf", keyed_generator(draw_seed(keyed_generator("pgd")), 0))
    begin = start if random_start else x
    slow = [slow_pgd(model, x[i], y[i], begin[i], 0.2, 10, 0.03)[-1] for i in range(N)]
    assert close(searched(model, x, y, key="pgd", random_start=random_start), torch.stack(slow))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_mim_equals_the_slow_reference(decay: float, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    slow = [slow_mim(model, x[i], y[i], 0.2, 10, 0.03, decay)[-1] for i in range(N)]
    assert close(searched(model, x, y, decay=decay), torch.stack(slow))


def test_momentum_outlasts_a_flat_spot() -> None:
    """A zero gradient adds nothing to the velocity; it does not turn it into something that is no number."""

    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 4 * x.flatten(1)[:, 0].clamp_max(0.62)
            return torch.stack([0 * score, score], dim=1)

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    x_adv = pool.get("mim", eps=0.4, steps=4, step_size=0.1)(Steep(), x, y)
    assert float(x_adv) == pytest.approx(0.9)


def test_registered_attacks_are_these_searches(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """What ``pool.get`` binds gives what the slow loops give."""
    x, y = batch[0].float().double(), batch[1]
    made: dict[str, tuple[dict[str, Any], Callable[..., list[Tensor]], tuple[float, ...]]] = {
        "fgsm": ({}, slow_pgd, (0.2, 1, 0.2)),
        "bim": ({"steps": 6}, slow_pgd, (0.2, 6, 2 * 0.2 / 6)),
        "mim": ({"steps": 6}, slow_mim, (0.2, 6, 2 * 0.2 / 6, 1.0)),
        "pgd": ({"steps": 6, "random_start": False}, slow_pgd, (0.2, 6, 2.5 * 0.2 / 6)),
    }
    for name, (knobs, slow, numbers) in made.items():
        x_adv = pool.get(name, eps=0.2, **knobs)(InDouble(model), x.float(), y)
        for i in range(N):
            start = (x[i],) if slow is slow_pgd else ()
            assert close(x_adv[i].double(), slow(model, x[i], y[i], *start, *numbers)[-1]), name


class InDouble(nn.Module):
    """Computes in float64 on float32 images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float64."""
        logits: Tensor = self.model(x.double())
        return logits


# APGD.


def test_checkpoints_are_the_published_ones() -> None:
    assert published_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(100)) == published_checkpoints(100)


def test_checkpoints_of_any_length_are_in_order() -> None:
    """They lie within the search, the intervals never grow, and even one step has one."""
    for steps in range(1, 60):
        found = [0, *sorted(checkpoints(steps))]
        assert len(found) > 1
        assert found[-1] <= steps
        intervals = [after - before for before, after in pairwise(found)]
        assert intervals == sorted(intervals, reverse=True)


class Waves(nn.Module):
    """A loss full of hills that no point can be fooled on: class 0 stays ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = 4 * torch.randn(32, 12, generator=keyed_generator("inner"), dtype=torch.float64)
        self.outer = torch.randn(12, CLASSES, generator=keyed_generator("outer"), dtype=torch.float64) / 12
        self.ahead = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return (x.flatten(1) @ self.inner).sin() @ self.outer + self.ahead


@pytest.mark.parametrize("rho", [0.75, 0.3])
def test_apgd_equals_the_slow_reference(rho: float, batch: tuple[Tensor, Tensor]) -> None:
    """No point is fooled, so the result is x_max; 100 steps, as in the paper."""
    x, y, network = batch[0], torch.zeros(N, dtype=torch.long), Waves()
    eps, steps = 0.1, 100
    start = random_point(x, eps, "linf", keyed_generator(draw_seed(keyed_generator("apgd")), 0))
    given: dict[str, Any] = {"norm": "linf", "eps": eps, "steps": steps, "restarts": 1, "loss": "ce"}
    draws = keyed_generator("apgd")
    x_adv = adaptive_ascent(network, x, y, **given, rho=rho, generator=draws, early_stop=False)
    assert not wrong(network(x_adv), y).any()
    slow = torch.stack([slow_apgd(network, x[i], y[i], start[i], eps, steps, rho) for i in range(N)])
    assert close(x_adv, slow)


def test_apgd_returns_the_first_iterate_that_fools(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """So freezing fooled points changes no result, only what it costs."""
    x, y = batch[0].float(), batch[1]
    network = InDouble(model)
    results, cost = [], []
    for early_stop in (False, True):
        attack = pool.get("apgd", eps=0.2, steps=10)
        with count_passes(network) as passes:
            results.append(attack(network, x, y, generator=keyed_generator(0), early_stop=early_stop))
        cost.append(passes.forwards)
    assert wrong(network(results[0]), y).sum() > N / 2
    assert torch.allclose(results[0], results[1], rtol=0, atol=1e-6)
    assert cost[1] < cost[0] == 11 * N


# What early_stop and restarts mean.


@pytest.mark.parametrize("decay", [None, 1.0])
def test_early_stop_freezes_the_first_iterate_that_fools(
    decay: float | None, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """A point that is wrong already stays clean, which it does not without ``early_stop``."""
    x, y = batch[0], batch[1].clone()
    y[0] = (y[0] + 1) % CLASSES
    stopped = searched(model, x, y, decay=decay, early_stop=True)
    stopped_at = set()
    for i in range(N):
        iterates = slow_pgd(model, x[i], y[i], x[i], 0.2, 10, 0.03)
        if decay is not None:
            iterates = slow_mim(model, x[i], y[i], 0.2, 10, 0.03, decay)
        fooling = [k for k, x_k in enumerate(iterates) if model(x_k[None]).argmax() != y[i]]
        stop = fooling[0] if fooling else 10
        assert close(stopped[i], iterates[stop])
        stopped_at.add(stop)
    # Else the test says nothing.
    assert len(stopped_at) > 2
    assert torch.equal(stopped[0], x[0])
    assert not torch.equal(searched(model, x, y, decay=decay)[0], x[0])


@pytest.mark.parametrize("eps", [0.02, 0.15])
def test_restarts_keep_the_worst(eps: float, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """The first restart that fools a point, else the one of highest loss."""
    x, y = batch
    base = draw_seed(keyed_generator("restarts"))
    knobs: dict[str, Any] = {"eps": eps, "steps": 2, "step_size": 0.3 * eps, "restarts": 4}
    x_adv = searched(model, x, y, key="restarts", random_start=True, **knobs)
    chosen = set()
    for i in range(N):
        starts = [random_point(x, eps, "linf", keyed_generator(base, restart))[i] for restart in range(4)]
        runs = [slow_pgd(model, x[i], y[i], start, eps, 2, 0.3 * eps)[-1] for start in starts]
        logits = model(torch.stack(runs))
        losses = F.cross_entropy(logits, y[i].expand(4), reduction="none")
        fooled = logits.argmax(1) != y[i]
        expected = int(torch.nonzero(fooled)[0]) if fooled.any() else int(losses.argmax())
        assert close(x_adv[i], runs[expected])
        chosen.add((expected, expected == int(losses.argmax())))
    assert len({restart for restart, _ in chosen}) > 1
    if eps > 0.1:
        # Of two restarts that fool, the first counts and not the one of higher loss.
        assert any(not highest for _, highest in chosen)


@pytest.mark.parametrize("name", ["pgd", "pgd-l2", "apgd", "square", "gaussian-noise"])
def test_more_restarts_fool_no_fewer(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch[0].float(), batch[1]
    network = InDouble(model)
    knobs = {knob: 3 for knob in ("steps",) if knob in pool.info(name).knobs}
    eps = 0.4 if name == "pgd-l2" else 0.08
    fooled = []
    for restarts in (1, 5):
        attack = pool.get(name, eps=eps, restarts=restarts, **knobs)
        fooled.append(network(attack(network, x, y, generator=keyed_generator(3))).argmax(1) != y)
    assert not (fooled[0] & ~fooled[1]).any()


# Losses, gradients, norms.


def test_losses_by_definition() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [4.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    y = torch.tensor([1, 2, 3])
    soft = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert torch.allclose(cross_entropy(logits, y), -soft.gather(1, y[:, None]).log().squeeze(1))
    assert margin(logits, y).tolist() == [-1.0, 3.5, 0.0]
    # −(z_y − max others) / (z_π1 − z_π3): −1 / (3 − 1) and 3.5 / (4 − 0.5), whatever scale and shift.
    assert dlr(logits, y).tolist() == pytest.approx([-0.5, 1.0, 0.0])
    assert dlr(37 * logits - 4, y).tolist() == pytest.approx([-0.5, 1.0, 0.0], abs=1e-5)
    # Of two classes the margin: divided by itself it would be ±1, without a slope.
    assert dlr(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])).tolist() == [-2.0, 2.0]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_see_one_sample_each(loss: str) -> None:
    """Value and gradient of a row are what they are alone, and agree with finite differences; in float32."""
    logits, y = torch.randn(5, 6, generator=keyed_generator(loss)), torch.arange(5)
    logits.requires_grad_()
    values = LOSSES[loss](logits, y)
    assert values.shape == (5,)
    assert torch.allclose(values[2], LOSSES[loss](logits[2:3], y[2:3])[0])
    (slope,) = torch.autograd.grad(values.sum(), logits)
    for i in range(5):
        for k in range(6):
            step = torch.zeros_like(logits)
            step[i, k] = 1e-2
            up, down = (LOSSES[loss](logits.detach() + way * step, y)[i] for way in (1, -1))
            assert float(slope[i, k]) == pytest.approx(float(up - down) / 2e-2, rel=1e-2, abs=1e-3)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert LOSSES[loss](logits.to(dtype), y).dtype == torch.float32


def test_input_gradient(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    found, logits, values = input_gradient(model, x, y, cross_entropy)
    slow = torch.stack([gradient(model, x[i], y[i]) for i in range(N)])
    assert torch.allclose(found, slow, rtol=0, atol=1e-7)
    assert torch.equal(logits, model(x))
    assert not logits.requires_grad
    assert not values.requires_grad
    assert torch.allclose(values, F.cross_entropy(model(x), y, reduction="none").float())


def test_wrong_counts_what_is_no_number() -> None:
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [torch.nan, 0.0], [torch.inf, 0.0], [0.0, -torch.inf]])
    assert wrong(logits, torch.zeros(5, dtype=torch.long)).tolist() == [False, True, True, True, False]


def sizes(delta: Tensor, norm: str) -> Tensor:
    """(N,) norms; l0 counts pixels in which any channel differs."""
    if norm == "l0":
        return (delta.abs().amax(1) > 0).flatten(1).sum(1).to(delta.dtype)
    return delta.flatten(1).norm(p=float(norm[1:]), dim=1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.3), ("l1", 2.0), ("l0", 3.0)])
def test_projection(norm: str, eps: float) -> None:
    """Into ball and box; what is inside stays; what is outside ends on the surface if the box lets it."""
    draws = keyed_generator(norm)
    x = torch.rand(50, 3, 5, 5, generator=draws, dtype=torch.float64)
    away = torch.randn(x.shape, generator=draws, dtype=torch.float64)
    there = project(x + 3 * away, x, eps, norm)
    assert (sizes(there - x, norm) <= eps + 1e-12).all()
    assert float(there.min()) >= 0
    assert float(there.max()) <= 1
    assert torch.allclose(project(there, x, eps, norm), there, rtol=0, atol=1e-12)
    middle = torch.full_like(x, 0.5)
    outside = project(middle + 0.1 * away if norm in ("l1", "l0") else middle + away, middle, eps, norm)
    assert torch.allclose(sizes(outside - middle, norm), torch.tensor(eps, dtype=torch.float64))


def test_projection_to_few_pixels_keeps_the_largest() -> None:
    delta = torch.tensor([[0.1, 0.0, -0.3, 0.2], [0.0, -0.25, 0.0, 0.0]]).view(1, 2, 2, 2)
    kept = project(0.5 + delta, torch.full_like(delta, 0.5), 2.0, "l0") - 0.5
    assert torch.allclose(kept.view(2, 4), torch.tensor([[0.0, 0.0, -0.3, 0.0], [0.0, -0.25, 0.0, 0.0]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_inside_and_spread(norm: str) -> None:
    x = torch.full((400, 1, 4, 4), 0.5)
    delta = random_point(x, 0.25, norm, keyed_generator(0)) - x
    size = sizes(delta, norm)
    assert 0.24 < float(size.max()) <= 0.25 + 1e-6
    assert float(delta.mean().abs()) < 0.01
    if norm == "l2":
        # Uniform length: a quarter of the points within a quarter of the radius.
        assert float((size < 0.25 / 4).float().mean()) == pytest.approx(0.25, abs=0.07)


def test_steepest_directions() -> None:
    slope = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    assert steepest(slope, "linf").flatten().tolist() == [1.0, -1.0, 0.0, 0.0]
    assert steepest(slope, "l2").flatten().tolist() == pytest.approx([0.6, -0.8, 0.0, 0.0])
    # Squares of such entries are 0 in float32.
    assert steepest(1e-30 * slope, "l2").flatten().tolist() == pytest.approx([0.6, -0.8, 0.0, 0.0])
    for norm in ("linf", "l2"):
        assert not steepest(0 * slope, norm).any()


# Passes, guards, randomness.

PASSES: dict[str, tuple[dict[str, Any], int, int]] = {
    "fgsm": ({}, 1, 1),
    "bim": ({"steps": 6}, 6, 6),
    "mim": ({"steps": 6}, 6, 6),
    "pgd": ({"steps": 6}, 6, 6),
    "pgd-l2": ({"steps": 6}, 6, 6),
    # A gradient at the start and after each step.
    "apgd": ({"steps": 6}, 7, 7),
    "square": ({"steps": 6}, 6, 0),
    "cw": ({"steps": 6, "binary_search_steps": 3}, 21, 21),
    "gaussian-noise": ({}, 0, 0),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_of_a_search(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Samples through the model, exactly: what training cost and the records state."""
    knobs, forwards, backwards = PASSES[name]
    assert passes(model, *batch, name, **knobs) == (forwards * N, backwards * N)


def passes(model: nn.Module, x: Tensor, y: Tensor, name: str, **knobs: Any) -> tuple[int, int]:
    """Forward and backward passes of an attack."""
    early_stop, network = knobs.pop("early_stop", False), InDouble(model)
    with count_passes(network) as counted:
        pool.get(name, budget="digits", **knobs)(network, x.float(), y, early_stop=early_stop)
    return counted.forwards, counted.backwards


def test_passes_of_restarts_and_early_stop(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    knobs: dict[str, Any] = {"eps": 0.2, "steps": 6, "restarts": 3}
    # Each restart is judged once more.
    assert passes(model, x, y, "pgd", **knobs) == (3 * 7 * N, 3 * 6 * N)
    assert N <= passes(model, x, y, "pgd", **knobs, early_stop=True)[0] < 3 * 7 * N
    # All are wrong from the first: one look, one judgement, no other restart.
    knobs |= {"random_start": False, "early_stop": True}
    assert passes(model, x, (y + 1) % CLASSES, "pgd", **knobs)[0] == 2 * N


def test_passes_count_what_goes_through() -> None:
    model = nn.Linear(4, 2)
    with count_passes(model) as outer:
        model(torch.rand(3, 4)).sum().backward()
        with count_passes(model) as inner, torch.no_grad():
            model(torch.rand(5, 4))
    model(torch.rand(7, 4)).sum().backward()
    assert (outer.forwards, outer.backwards) == (8, 3)
    assert (inner.forwards, inner.backwards) == (5, 0)


def test_guards_put_each_flag_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    model[0].weight.grad = held = torch.ones(2, 2)
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
    with torch.no_grad(), untouched(model):
        assert torch.is_grad_enabled()
        model(torch.rand(3, 2)).sum().backward()
        assert model[0].weight.grad is not held
    assert model[0].weight.grad is held
    assert held.tolist() == [[1, 1], [1, 1]]
    assert model[0].bias.grad is None


def test_buffers_are_kept() -> None:
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.running_mean[0] = torch.nan
    with buffers_kept(model):
        model(torch.rand(8, 2))
        assert float(model.running_mean[1]) > 0
    assert model.running_mean.isnan().tolist() == [True, False]
    assert float(model.running_mean[1]) == 0
    assert int(model.num_batches_tracked) == 0


def test_isolated_randomness_is_seeded_and_undone() -> None:
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        with isolated_randomness(seed, torch.device("cpu")):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_make_seeds() -> None:
    """The same everywhere and for ever: records depend on it. Parts do not run into each other."""
    assert key_seed("evaluate", 0, 1) == key_seed("evaluate", "0", "1")
    assert key_seed("a", "bc") != key_seed("ab", "c")
    assert key_seed("evaluate", 0, 1, "pgd:eps=0.2", 3) == 8614740057349210629
    assert min(key_seed(i) for i in range(100)) >= 0
    assert max(key_seed(i) for i in range(100)) < 2**63
