"""DDeR: routing and losses by hand, what each stage trains, and resuming."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, cross_entropy, equal, small, softmax, state_of, stopped_and_resumed
from torch import Tensor, nn

from attacks_pool import InputError
from attacks_pool.calling.randomness import keyed_generator
from defenses import Stage, TrainPlan, registry
from defenses.methods.dder import DDeR
from defenses.parts.lowrank import Route

PLAN = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)
FEW = {"rank": 2, "router_width": 4, "coverage": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:dder. adapters reach only")


def data(digits: Any, count: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Batches of ten digits."""
    return [(digits.train.x[part], digits.train.y[part]) for part in torch.arange(count).split(10)]


def grown(digits: Any, stages: int = 3) -> DDeR:
    """After stages against FGSM and PGD in turn, with experts that do something and a decided sentinel."""
    defense = DDeR(small(), seed=1, **FEW)
    for number in range(stages):
        defense.fit(data(digits), [attack(("fgsm", "pgd")[number % 2])], plan=PLAN)
    for value in [*defense.sentinel.parameters(), *defense.routers.parameters()] if defense.sentinel else []:
        value.data += 0.3 * torch.randn(value.shape, generator=keyed_generator(value.numel()))
    for expert in range(len(defense.tasks)):
        for one in defense._adapter(expert):
            one.data += 0.3 * torch.randn(one.shape, generator=keyed_generator(expert))
    return defense


@pytest.fixture(scope="module")
def three(digits: Any) -> DDeR:
    """After three stages."""
    return grown(digits)


class TestRouting:
    """w(x) = Σ_t q_t(x)·w_t(x)."""

    def test_weights_by_hand(self, three: DDeR, digits: Any) -> None:
        """A router weighs the experts up to its stage; the sentinel weighs the routers."""
        x = digits.test.x[:5]
        features = three.features(x)
        torch.testing.assert_close(features.norm(dim=1), torch.full((5,), 96**0.5))
        assert three.sentinel is not None
        q = softmax(three.sentinel, features)
        w = [softmax(router, x) for router in three.routers]
        found = three.router_weights(x)
        assert found.shape == (5, 6)
        for i in range(5):
            for expert in range(6):
                by_hand = sum(q[i][t] * w[t][i][expert] for t in range(3) if expert < 2 * (t + 1))
                assert float(found[i, expert]) == pytest.approx(by_hand, abs=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones(5))

    def test_features_are_those_of_the_backbone(self, three: DDeR, digits: Any) -> None:
        """No expert has an effect on them."""
        x, before = digits.test.x[:5], three.features(digits.test.x[:5])
        with three.routing.along(Route(task=2)):
            assert torch.equal(three.features(x), before)
        plain = three.merged(None)
        assert isinstance(plain, nn.Sequential)
        inner = plain[:-1](x)
        torch.testing.assert_close(before, inner / inner.norm(dim=1, keepdim=True) * 96**0.5)

    def test_attacks_differentiate_through_routers_and_sentinel(self, three: DDeR, digits: Any) -> None:
        """The gradient is not that at fixed weights."""
        x = digits.test.x[:1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(three(x).square().sum(), x)
        weights = three.router_weights(x)[0].detach()
        (fixed,) = torch.autograd.grad(three.merged(weights)(x).square().sum(), x)
        assert not torch.allclose(fixed, gradient, rtol=1e-2)
        torch.testing.assert_close(three.merged(weights)(x), three(x), atol=1e-4, rtol=1e-4)


class TestLoss:
    """CE through the stage's router, and the sentinel's."""

    def test_by_hand(self, three: DDeR, digits: Any) -> None:
        """The mean over this stage and the pseudo-tasks of earlier ones."""
        x, y = digits.test.x[:8], digits.test.y[:8]
        third = DDeR(small(), seed=1, weight=0.7, **FEW)
        third.load_spec(json.loads(json.dumps(three.spec())))
        third.load_state_dict(state_of(three))
        third.load_training_state(three.training_state())
        third._measured = third._measured[:2]
        third.generator = keyed_generator("dder")
        third.eval()
        terms = third.loss(x, y, Stage(3, (attack(),), PLAN))
        third.generator = keyed_generator("dder")
        x_adv = third.craft(attack(), x, y)
        with torch.no_grad(), third.routing.along(Route(weights=third._weights(x_adv, 2))):
            logits = third(x_adv)
        ce = cross_entropy(softmax(nn.Identity(), logits), y)
        assert third.sentinel is not None
        answers = softmax(third.sentinel, third.features(x_adv))
        losses = [cross_entropy(answers, torch.full((8,), 2))]
        for number, (mean, spread) in enumerate(third._measured):
            pseudo = mean + spread * torch.randn(8, 96, generator=third.generator)
            losses.append(cross_entropy(softmax(third.sentinel, pseudo), torch.full((8,), number)))
        assert terms["ce"].item() == pytest.approx(ce, rel=1e-3)
        assert terms["sentinel"].item() == pytest.approx(sum(losses) / 3, rel=1e-3)
        assert terms["loss"].item() == pytest.approx(ce + 0.7 * sum(losses) / 3, rel=1e-3)

    def test_measured_by_hand(self, digits: Any) -> None:
        """Mean and standard deviation of the features of attacked images; nothing else is stored."""
        defense = DDeR(small(), **FEW)
        defense.fit(data(digits), [attack()], plan=PLAN)
        mean, spread = defense._measured[0]
        features = torch.cat([defense.features(defense.craft(attack(), x, y)) for x, y in data(digits)])
        torch.testing.assert_close(mean, features.mean(0), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(spread, features.std(0, correction=0), atol=1e-4, rtol=1e-3)
        state = defense.training_state()
        assert all(value.dim() == 1 for pair in state["measured"] for value in pair)


class TestStages:
    """What grows and what trains."""

    def test_each_stage_trains_its_own(self, digits: Any) -> None:
        """The backbone in stage 1; later the new experts and router, and the sentinel."""
        defense = DDeR(small(), **FEW)
        defense.fit(data(digits), [attack()], plan=PLAN)
        assert not equal(defense.merged(None), small())
        assert defense.sentinel is None
        before = state_of(defense)
        defense.fit(data(digits), [attack("pgd")], plan=PLAN)
        after = state_of(defense)
        assert equal({name: after[name] for name in before}, before)
        added = {name for name in after if name not in before}
        assert all(
            name.startswith(("routers.1.", "sentinel.")) or ".down." in name or ".up." in name
            for name in added
        )
        assert defense.sentinel is not None
        assert defense.sentinel.weight.shape == (2, 96)
        assert float(defense.sentinel.weight.abs().max()) > 0
        assert sum(bool(value.any()) for name, value in after.items() if ".up." in name and name in added) > 0
        report = defense.report()
        assert 0 <= float(report["sentinel_right"]) <= 1  # type: ignore[arg-type]
        assert set(report["sentinel_by_stage"]) == {"2"}  # type: ignore[arg-type]

    def test_without_weight_all_routers_are_chosen_alike(self, digits: Any) -> None:
        defense = DDeR(small(), weight=0.0, **FEW)
        for name in ("fgsm", "pgd"):
            defense.fit(data(digits), [attack(name)], plan=PLAN)
        torch.testing.assert_close(defense.choice(digits.test.x[:3]), torch.full((3, 2), 0.5))
        assert defense.report() == {}

    def test_saved_and_loaded(self, three: DDeR, digits: Any) -> None:
        spec = json.loads(json.dumps(three.spec()))
        again = registry.build("dder", small(), parameters=spec["parameters"])
        again.load_spec(spec)
        again.load_state_dict(state_of(three))
        x = digits.test.x[:10]
        assert torch.equal(again.eval()(x), three(x))
        # Without what training measures, it begins anew.
        again.fit(data(digits), [attack()], plan=PLAN)
        assert isinstance(again, DDeR)
        assert (len(again.routers), len(again.tasks), again.sentinel) == (1, 2, None)

    def test_resuming_is_exact(self, digits: Any) -> None:
        """In the middle of the third stage."""
        stages = [attacks("fgsm"), attacks("fgsm:eps=0.1"), attacks("fgsm")]
        stopped_and_resumed(lambda: DDeR(small(), seed=1, **FEW), data(digits, 30), stages, at=4, plan=PLAN)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"experts": 0}, "experts=0 must be at least 1"),
        ({"weight": -1.0}, "weight=-1.0 must be at least 0 and finite"),
        ({"router_width": 0}, "router_width=0 must be at least 1"),
        ({"router_depth": -1}, "router_depth=-1 must be at least 0"),
    ],
)
def test_parameters_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        DDeR(small(), **given)
