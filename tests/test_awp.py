"""AWP: the perturbed step against a slow version, its limits, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, equal, points, small, stopped_and_resumed
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import InputError
from defenses import AT, AWP, Stage, TrainPlan
from defenses.parts.frozen import frozen_copy

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=1, lr=0.3, momentum=0.0, weight_decay=0.0, schedule="constant", eps_warmup=0)


def by_hand(model: nn.Module, x_adv: Tensor, y: Tensor, gamma: float, steps: int) -> dict[str, Tensor]:
    """Weights after one step: g at w, v_l = γ ‖w_l‖ g_l / ‖g_l‖ for matrices, then the gradient at w + v."""
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    now = dict(start)

    def slopes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        theta = {name: value.clone().requires_grad_() for name, value in weights.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, theta, x_adv), y)
        return dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))

    for _ in range(steps):
        g = slopes(now)
        for name, w in start.items():
            if w.dim() < 2:
                continue
            radius = gamma * float(w.square().sum().sqrt())
            v = now[name] - w + radius / steps * g[name] / g[name].square().sum().sqrt()
            now[name] = w + v * min(1.0, radius / max(float(v.square().sum().sqrt()), 1e-30))
    g = slopes(now)
    return {name: w - 0.3 * g[name] for name, w in start.items()}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_by_hand(network: Network, steps: int) -> None:
    """The gradient at w + v moves w; biases are not perturbed, but move too."""
    x, y = points(1, 24)
    defense = AWP(network(), gamma=0.3, steps=steps)
    x_adv = defense.craft(attack(), x, y)
    expected = by_hand(frozen_copy(defense.model), x_adv, y, 0.3, steps)
    plain = by_hand(frozen_copy(defense.model), x_adv, y, 0.0, 1)
    defense.fit([(x, y)], [attack()], plan=PLAN)
    for name, value in defense.model.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(value.detach(), plain[name], atol=1e-4)


def test_the_perturbation_is_as_long_as_allowed(network: Network) -> None:
    """γ ‖w_l‖ for each matrix; batch-norm statistics and other parameters do not change."""
    defense = AWP(network(norm=True), gamma=0.1).train()
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    x, y = points(1, 24)
    layers = defense.layers()
    loss = F.cross_entropy(frozen_copy(defense.model).train()(x), y)
    defense.perturb(layers, [weight.detach().clone() for weight in layers], x, y)
    moved = {name: value - before[name] for name, value in defense.state_dict().items()}
    names = [name for name, change in moved.items() if change.any()]
    assert names == [name for name, value in before.items() if value.dim() > 1]
    for name in names:
        assert float(moved[name].norm() / before[name].norm()) == pytest.approx(0.1, rel=1e-3)
    assert F.cross_entropy(frozen_copy(defense.model).train()(x), y) > loss


@pytest.mark.parametrize("given", [{"gamma": 0.0}, {"warmup_share": 1.0}])
def test_without_perturbation_it_is_adversarial_training(digits: Any, given: dict[str, Any]) -> None:
    """Bit for bit."""
    data = [(digits.train.x[:30], digits.train.y[:30])]
    found = []
    for defense in (AWP(small(), seed=1, **given), AT(small(), seed=1)):
        defense.fit(data, attacks(), plan=PLAN.model_copy(update={"epochs": 3, "max_grad_norm": 1.0}))
        found.append(defense)
    assert equal(found[0].model, found[1].model)


def test_the_warm_up_is_a_share_of_each_stage(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    defense = AWP(network(), warmup_share=0.5)
    perturbed: list[int] = []
    monkeypatch.setattr(defense, "perturb", lambda *_: perturbed.append(1))
    optimizer = defense.configure_optimizer(PLAN)
    x, y = points(1)
    counts = []
    for done in (0.0, 0.49, 0.5, 0.9):
        defense.step(x, y, Stage(2, (attack(),), PLAN, (), done), optimizer)
        counts.append(len(perturbed))
    assert counts == [0, 0, 1, 2]


def test_resuming_is_exact(digits: Any) -> None:
    data = [(digits.train.x[:12], digits.train.y[:12]), (digits.train.x[12:24], digits.train.y[12:24])]
    stages = [attacks("fgsm"), attacks("pgd")]
    plan = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)
    stopped_and_resumed(lambda: AWP(small(), seed=1), data, stages, at=3, plan=plan)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gamma": -0.1}, "gamma=-0.1 must be at least 0 and finite"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"warmup_share": 1.5}, "warmup_share=1.5 must be from 0 to 1"),
    ],
)
def test_parameters_are_checked(network: Network, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        AWP(network(), **given)
