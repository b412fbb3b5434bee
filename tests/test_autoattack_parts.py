"""The parts of AutoAttack with few classes, stochastic models and by definition; SPSA's exact gradients."""

from __future__ import annotations

import pytest
import torch
from targets import linear
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import pool
from attacks_pool.attacks.spsa import summed_estimates
from attacks_pool.attacks.square import Pyramids, pyramids
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.fast.copy import SearchModel
from attacks_pool.losses import dlr, margin, targeted_dlr
from attacks_pool.search.auto_pgd import likeliest_others
from attacks_pool.search.auto_pgd_run import AscentPlan
from attacks_pool.verifier import distance

EPS = {"linf": 0.3, "l2": 1.0, "l1": 3.5}
PARTS = [
    kind + suffix for kind in ("apgd-ce", "apgd-dlr", "apgd-t", "square") for suffix in ("", "-l2", "-l1")
]


def small(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of 4×4 images and points that it gets right."""
    case = linear(classes, (1, 4, 4), points=32, spread=0.2)
    return case.model, case.x, case.y


@pytest.mark.quick(r".*-(2|4)")
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("name", [*PARTS, "spsa"])
def test_part_fools_models_of_few_classes(name: str, classes: int) -> None:
    model, x, y = small(classes)
    eps = EPS[str(pool.info(name).norm)]
    steps = 300 if name.startswith("square") else 25
    x_adv = pool.get(name, eps=eps, steps=steps)(model, x, y, generator=keyed_generator(0))
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.9


@pytest.mark.parametrize("name", [*PARTS, "apgd"])
def test_success_is_confirmed_by_the_exact_model(name: str) -> None:
    """A search model that sees success everywhere stops nothing; one that is right does."""
    model, x, y = small(4)
    eps = EPS[str(pool.info(name).norm)]
    attack = pool.get(name, eps=eps, steps=120 if name.startswith("square") else 10)

    class Liar(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            return logits - 3 * F.one_hot(y[:1], 4)

    one, label = x[:1], y[:1]
    search = SearchModel(model, Liar(), torch.float32)
    x_adv = attack(search, one, label, generator=keyed_generator(1), early_stop=True)
    assert model(x_adv).argmax(1) != label
    assert not torch.equal(x_adv, one)


def test_targeted_dlr_by_definition() -> None:
    y, target = torch.tensor([0]), torch.tensor([2])
    four = torch.tensor([[5.0, 3.0, 2.0, 1.0]])
    assert targeted_dlr(four, y, target).item() == pytest.approx(-3 / (5 - 1.5))
    assert targeted_dlr(four[:, :3], y, target).item() == pytest.approx(-3 / (5 - 2.5))
    assert targeted_dlr(four[:, :2], y, target - 1).item() == pytest.approx(-2)
    assert torch.equal(dlr(four[:, :2], y), margin(four[:, :2], y))


def test_targets_are_the_likeliest_others() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0, 2.0], [9.0, 0.0, torch.nan, 5.0]])
    found = likeliest_others(logits, torch.tensor([1, 0]), 2)
    assert found.tolist()[0] == [2, 3]
    assert 0 not in found[1]
    assert likeliest_others(logits, torch.tensor([1, 0]), 9).shape == (2, 3)


def test_gradients_of_a_stochastic_model_are_averaged() -> None:
    """Noise in the logits that hides the slope of one draw does not hide that of many."""
    model, x, y = small(2)

    class Noisy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = model(images + 0.5 * torch.randn_like(images) * (1 + 8 * images.square()))
            return logits

    gained = []
    for draws in (1, 20):
        attack = pool.get("apgd-ce", eps=0.1, steps=10, eot_steps=draws)
        x_adv = attack(Noisy(), x, y, generator=keyed_generator(0))
        gained.append(float(margin(model(x_adv), y).detach().mean()))
    assert gained[1] > gained[0]


def test_l1_search_is_in_three_balls() -> None:
    def phases(steps: int) -> list[tuple[float, int]]:
        plan = AscentPlan("l1", 2.0, steps, 0.75, targeted_dlr, early_stop=True)
        return [(phase.eps, phase.steps) for phase in plan.phases()]

    assert phases(100) == [(6.0, 30), (4.0, 30), (2.0, 40)]
    assert phases(1) == [(2.0, 1)]


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_use_the_whole_budget(norm: str, order: int, channels: int) -> None:
    """Away from the walls of the box the proposals of a search stay on the sphere."""
    x = torch.full((5, channels, 12, 12), 0.5)
    search, eps = Pyramids(norm, 0.2, channels), 0.2
    x_adv = search.start(x, keyed_generator(0))
    for step in range(6):
        draws = torch.rand(5, search.draws, generator=keyed_generator(step))
        x_adv = search.propose(x, x_adv, 0.2, draws).tried
        assert distance(x_adv, x, norm).tolist() == pytest.approx([eps] * 5, rel=1e-4)
    for size in (1, 3, 6, 7):
        halves = pyramids(size, order).split([size // 2, size - size // 2])
        assert [float(half.norm(p=order)) for half in halves if len(half)] == pytest.approx(
            [1.0] * sum(len(half) > 0 for half in halves)
        )


def test_spsa_estimates_the_gradient() -> None:
    """On a linear model the mean of many estimates is the margin's gradient."""
    model, x, y = small(2)
    x = x[:2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(margin(model(x), y[:2]).sum(), x)
    signs = torch.rand(4000, 2, 1, 4, 4, generator=keyed_generator(0)).sub(0.5).sign()
    with torch.no_grad():
        estimate = summed_estimates(model, x.detach(), y[:2], signs, 0.01) / 4000
    assert F.cosine_similarity(estimate.flatten(1), slope.flatten(1)).min() > 0.99
    assert torch.allclose(estimate.flatten(1).norm(dim=1), slope.flatten(1).norm(dim=1), rtol=0.05)
