"""The eight baselines: losses against those in the papers' notation, state, memory, a little training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import attack, cross_entropy, divergence, equal, mean, points, softmax, state_of
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import run
from advbench.contract.holdings import held_bytes
from advbench.data import DataSet, Split, TensorLoader
from attacks_pool import InputError
from attacks_pool.calling.randomness import draw_seed, keyed_generator
from defenses import (
    AT,
    EWC,
    MART,
    NFGSM,
    SI,
    TRADES,
    Free,
    LwF,
    Progress,
    Replay,
    Stage,
    TrainPlan,
    registry,
)
from defenses.methods.mart import boosted
from defenses.methods.replay import balanced
from defenses.parts.ball import ascend
from defenses.parts.consolidation import trained

OWN_SEARCH = ("trades", "mart", "n-fgsm", "free")
CONTINUAL = ("ewc", "si", "lwf", "replay")
BASELINES = (*OWN_SEARCH, *CONTINUAL)
PLAN = TrainPlan(epochs=1, lr=0.05)

Network = Callable[..., nn.Sequential]
every_baseline = pytest.mark.parametrize("name", BASELINES)


def stage(*attacks: Any, index: int = 1, data: Any = ()) -> Stage:
    """A stage of one epoch."""
    return Stage(index, attacks or (attack(),), PLAN, data)


def lengths(values: Tensor) -> Tensor:
    """l2 norms (N, 1, 1, 1)."""
    return values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def ahead(gradient: Tensor, name: str) -> Tensor:
    """The steepest direction in the norm of an attack: l2, or linf."""
    return gradient / lengths(gradient) if name.endswith("l2") else gradient.sign()


def confident(network: Network, **more: Any) -> nn.Sequential:
    """A network whose probabilities are far from even, so that a wrong term shows."""
    model = network(**more)
    model[-1].weight.data.mul_(8)
    return model


@pytest.fixture
def loader(digits: DataSet) -> TensorLoader:
    """150 points in three batches."""
    return TensorLoader(Split(digits.train.x[:150], digits.train.y[:150]), 50, seed=3)


class TestTrades:
    """L = CE(f(x), y) + β · KL(f(x) ‖ f(x̃))."""

    def test_loss(self, network: Network) -> None:
        """In float64, sample by sample; the divergence is from the clean output."""
        defense = TRADES(confident(network).double(), beta=3.0)
        x, x_adv, y = points(2, dtype=torch.float64)
        terms = defense.trade_off(x, x_adv, y)
        clean, adv = softmax(defense.model, x), softmax(defense.model, x_adv)
        ce, kl = cross_entropy(clean, y), divergence(clean, adv)
        expected = {"ce": ce, "kl": kl, "loss": ce + 3 * kl}
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-10)
        assert abs(kl - divergence(adv, clean)) > 1e-3

    def test_both_sides_get_a_gradient(self, network: Network) -> None:
        """KL has one to f(x) and one to f(x̃)."""
        x, x_adv, y = points(2)
        x.requires_grad_()
        x_adv.requires_grad_()
        terms = TRADES(network()).trade_off(x, x_adv, y)
        for gradient in torch.autograd.grad(terms["kl"], (x, x_adv)):
            assert gradient.abs().max() > 0

    @pytest.mark.parametrize("name", ["pgd", "pgd-l2"])
    def test_inner_maximum(self, network: Network, name: str) -> None:
        """x_{k+1} = Π(x_k + 2.5·eps/steps · direction of ∇KL(f(x) ‖ f(x_k))); labels play no part."""
        defense = TRADES(confident(network)).train()
        met = attack(name)
        x, y = points(1)
        defense.generator = keyed_generator("trades")
        got = defense.inner_maximum(met, x, y)
        draws = keyed_generator(draw_seed(keyed_generator("trades")), 0)
        eps, steps = met.eps, met.knobs["steps"]
        assert steps == 7
        clean = defense.model(x).softmax(1).detach()

        def project(moved: Tensor) -> Tensor:
            delta = moved - x
            near = delta.clamp(-eps, eps) if name == "pgd" else delta * (eps / lengths(delta)).clamp_max(1)
            return (x + near).clamp(0, 1)

        expected = project(x + 0.001 * torch.randn(x.shape, generator=draws))
        for _ in range(steps):
            expected.requires_grad_()
            found = defense.model(expected).softmax(1)
            (gradient,) = torch.autograd.grad((clean * (clean / found).log()).sum(), expected)
            expected = project(expected.detach() + 2.5 * eps / steps * ahead(gradient, name))
        # The divergence is nearly flat at the start: rounding grows on the way.
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)
        defense.generator = keyed_generator("trades")
        assert torch.equal(got, defense.inner_maximum(met, x, (y + 1) % 10))
        assert not got.requires_grad
        assert defense.training


class TestMart:
    """L = BCE(f(x̃), y) + λ · KL(f(x) ‖ f(x̃)) · (1 − p_y(x))."""

    def test_loss(self, network: Network) -> None:
        """In float64, sample by sample."""
        defense = MART(confident(network).double(), weight=3.0)
        x, x_adv, y = points(2, dtype=torch.float64)
        terms = defense.aware(x, x_adv, y)
        bce, kl = [], []
        for p, q, label in zip(
            softmax(defense.model, x), softmax(defense.model, x_adv), y.tolist(), strict=True
        ):
            rival = max(value for k, value in enumerate(q) if k != label)
            bce.append(-math.log(q[label]) - math.log(1 - rival))
            kl.append(divergence([p], [q]) * (1 - p[label]))
        expected = {"bce": mean(bce), "kl": mean(kl), "loss": mean(bce) + 3 * mean(kl)}
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-10)
        assert min(mean(bce), mean(kl)) > 0.05

    def test_certain_mistakes_have_a_finite_loss(self) -> None:
        """p of a wrong class is 1 in float32: −log(1 − p) is the distance in logits, with a gradient."""
        logits = torch.tensor([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]], requires_grad=True)
        values = boosted(logits.log_softmax(1), torch.tensor([0, 0]))
        assert values.tolist() == pytest.approx([200 + 200 - math.log(2), 0], abs=1e-3)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert gradient.isfinite().all()
        assert gradient[0, 1] > 1

    def test_points_maximise_the_cross_entropy(self, network: Network) -> None:
        """By as many steps as the attack trains with, in its ball."""
        defense = MART(confident(network))
        x, y = points(1)
        calls = []
        handle = defense.model.register_forward_hook(lambda *_: calls.append(1))
        x_adv = ascend(defense, attack("pgd"), x, y)
        handle.remove()
        assert len(calls) == 7
        assert float((x_adv - x).abs().max()) == pytest.approx(0.2, abs=1e-6)
        before, after = (F.cross_entropy(defense(z), y) for z in (x, x_adv))
        assert after > before + 0.5


@pytest.mark.parametrize(("kind", "clean"), [(TRADES, 1), (MART, 0)])
@pytest.mark.parametrize(("steps", "taken"), [(None, 1), (10, 10)])
def test_steps_of_the_search(
    network: Network, kind: type[TRADES | MART], clean: int, steps: int | None, taken: int
) -> None:
    """Those of the stage, of which FGSM has one, or as many as were asked for; two forwards are the loss."""
    defense = kind(network(), steps=steps)
    x, y = points(1)
    calls = []
    defense.model.register_forward_hook(lambda *_: calls.append(1))
    defense.loss(x, y, stage(attack("fgsm")))
    assert len(calls) == clean + taken + 2


class TestNFGSM:
    """x̃ = x_η + α·eps · sign ∇CE(f(x_η), y), x_η = x + η."""

    @pytest.mark.parametrize("name", ["fgsm", "pgd-l2"])
    def test_points_by_hand(self, network: Network, name: str) -> None:
        """Strong noise, one step, no projection but that onto the image range."""
        defense = NFGSM(confident(network), k=2.0, alpha=0.5)
        met = attack(name)
        x, y = points(1)
        defense.generator, draws = keyed_generator("noise"), keyed_generator("noise")
        got = defense.noisy_step(met, x, y)
        if name == "fgsm":
            noise = torch.rand(x.shape, generator=draws) * 4 * met.eps - 2 * met.eps
        else:
            noise = ahead(torch.randn(x.shape, generator=draws), name)
            noise = noise * torch.rand((len(x), 1, 1, 1), generator=draws) * 2 * met.eps
        noisy = (x + noise).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(defense.model(noisy), y, reduction="sum"), noisy)
        expected = (noisy + 0.5 * met.eps * ahead(gradient, name)).clamp(0, 1)
        torch.testing.assert_close(got, expected.detach(), atol=1e-6, rtol=0)

    def test_the_loss_is_that_of_these_points(self, network: Network) -> None:
        """CE(f(x̃), y)."""
        defense = NFGSM(confident(network))
        x, y = points(1)
        defense.generator = keyed_generator("loss")
        loss = defense.loss(x, y, stage())
        defense.generator = keyed_generator("loss")
        x_adv = defense.noisy_step(attack(), x, y)
        assert loss.item() == pytest.approx(F.cross_entropy(defense.model(x_adv), y).item(), abs=1e-6)


class TestFree:
    """One backward pass moves θ and δ, m times a batch."""

    @pytest.mark.parametrize("name", ["pgd", "pgd-l2"])
    def test_replays_by_hand(self, network: Network, name: str) -> None:
        """Weights (momentum too) and δ after each of 3 replays, and of the next, smaller batch."""
        x, y = points(1, 20)
        batches = [(x[:12], y[:12]), (x[12:], y[12:])]
        defense = Free(network(), replays=3)
        plan = TrainPlan(lr=0.1, momentum=0.9, weight_decay=0.0)
        optimizer = defense.configure_optimizer(plan)
        met = attack(name)
        model = network()
        velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
        delta = torch.zeros(12, 1, 8, 8)
        for number in range(6):
            # Whatever comes while the first is replayed, the second is the next.
            defense.step(*batches[min(number, 1)], Stage(1, (met,), plan), optimizer)
            images, labels = batches[number // 3]
            rows = delta[: len(images)].clone()
            z = (images + rows).clamp(0, 1).requires_grad_()
            *gradients, g = torch.autograd.grad(F.cross_entropy(model(z), labels), [*model.parameters(), z])
            with torch.no_grad():
                for place, (parameter, gradient) in enumerate(
                    zip(model.parameters(), gradients, strict=True)
                ):
                    velocity[place] = 0.9 * velocity[place] + gradient
                    parameter -= 0.1 * velocity[place]
            moved = (rows + met.eps * ahead(g, name)).detach()
            near = moved.clamp(-met.eps, met.eps)
            delta[: len(images)] = near if name == "pgd" else moved * (met.eps / lengths(moved)).clamp_max(1)
            torch.testing.assert_close(defense._delta, delta, atol=1e-5, rtol=0)
            for left, right in zip(defense.model.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
        assert delta.abs().max() > 0.1

    def test_clipped_pixels_are_not_lost(self, network: Network) -> None:
        """On black images a δ below 0 shows nothing, and still turns where the gradient is above 0."""
        defense = Free(network(), replays=8)
        x, y = torch.zeros(4, 1, 8, 8), torch.arange(4)
        optimizer = defense.configure_optimizer(TrainPlan(lr=1e-6))
        defense.step(x, y, stage(), optimizer)
        defense._delta = torch.full_like(x, -0.2)
        for _ in range(2):
            defense.step(x, y, stage(), optimizer)
        assert 0.2 < float((defense._delta == 0.2).double().mean()) < 0.8

    def test_as_many_steps_as_any_other_and_every_mth_batch(
        self, network: Network, loader: TensorLoader
    ) -> None:
        """epochs · B optimizer steps and as many forward and backward passes, on a third of the batches."""
        seen: list[Tensor] = []
        defense = Free(network(), replays=3)
        loss = defense.loss
        defense.loss = lambda x, y, now: (seen.append(x), loss(x, y, now))[1]  # type: ignore[method-assign]
        defense.fit(loader, [attack()], plan=TrainPlan(epochs=4))
        assert len(seen) == 12
        assert (defense.passes.forwards, defense.passes.backwards) == (600, 600)
        for first in range(0, 12, 3):
            assert torch.equal(seen[first], seen[first + 1])
            assert torch.equal(seen[first], seen[first + 2])
            assert first == 0 or not torch.equal(seen[first], seen[first - 1])

    def test_every_batch_of_a_list_is_as_likely(self, network: Network) -> None:
        """Also where the number of batches is a multiple of m, and the data come in one order."""
        batches = [(torch.full((2, 1, 8, 8), place / 4), torch.tensor([0, 1])) for place in range(4)]
        defense = Free(network(), replays=2)
        counts = [0, 0, 0, 0]
        for _ in range(200):
            for batch in batches:
                images, _ = defense._batch(*batch)
                counts[int(4 * images[0, 0, 0, 0])] += 1
        assert sum(counts) == 800
        assert all(140 < count < 260 for count in counts)
        once = Free(network(), replays=1)
        assert all(once._batch(*batch)[0] is batch[0] for batch in batches * 2)


class TestEWC:
    """λ/2 · Σ Ω_i (θ_i − θ*_i)², Ω from the diagonal Fisher information."""

    def test_fisher_is_of_each_sample_and_a_drawn_label(self, network: Network) -> None:
        """The mean of (∂ log p_y / ∂θ)² over attacked samples by themselves, with y drawn from the model."""
        defense = EWC(network(norm=True), fisher_samples=20).eval()
        x, y = points(1, 32)
        defense.generator = keyed_generator("fisher")
        got = defense.fisher(stage(attack("pgd"), data=[(x[:16], y[:16]), (x[16:], y[16:])]))
        defense.generator = keyed_generator("fisher")
        theta = {name: value.detach() for name, value in trained(defense.model).items()}

        def log_p(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(defense.model, weights, image[None])
            return -F.cross_entropy(logits, label[None])

        squares = {name: torch.zeros_like(value) for name, value in theta.items()}
        for part in (slice(0, 16), slice(16, 20)):
            x_adv = defense.craft(attack("pgd"), x[part], y[part])
            shares = [defense.model(image[None]).softmax(1)[0] for image in x_adv]
            drawn = torch.stack([torch.multinomial(p, 1, generator=defense.generator) for p in shares])
            each = torch.func.vmap(torch.func.grad(log_p), in_dims=(None, 0, 0))(theta, x_adv, drawn[:, 0])
            for name, gradient in each.items():
                squares[name] += gradient.square().sum(0) / 20
        assert got.keys() == squares.keys()
        for name, value in squares.items():
            torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-3)

    @pytest.mark.parametrize("online", [True, False])
    def test_penalty(self, network: Network, loader: TensorLoader, online: bool) -> None:
        """Online: Ω ← γ(Ω + F), held to the last θ*; else the sum over stages, each with its own F and θ*."""
        stages: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

        class Noting(EWC):
            def fisher(self, stage: Stage) -> dict[str, Tensor]:
                found = super().fisher(stage)
                now = {name: value.detach().clone() for name, value in trained(self.model).items()}
                stages.append((found, now))
                return found

        defense = Noting(network(), strength=7.0, gamma=0.5, online=online, fisher_samples=40)
        for name in ("fgsm", "pgd"):
            defense.fit(loader, [attack(name)], plan=PLAN)
        for parameter in defense.parameters():
            parameter.data += 0.1
        x, y = points(1)
        terms = defense.loss(x, y, stage(index=3))
        (first, at_first), (second, at_second) = stages
        expected = 0.0
        for name, parameter in trained(defense.model).items():
            value = parameter.detach()
            if online:
                omega = 0.5 * (0.5 * first[name] + second[name])
                expected += float((omega * (value - at_second[name]) ** 2).sum())
            else:
                for fisher, anchor in ((first, at_first), (second, at_second)):
                    expected += float((fisher[name] * (value - anchor[name]) ** 2).sum())
        assert expected > 1e-3
        assert terms["penalty"].item() == pytest.approx(expected, rel=1e-4)
        assert terms["loss"].item() == pytest.approx(terms["ce"].item() + 3.5 * expected, rel=1e-4)
        assert len(defense._held) == (1 if online else 2)

    def test_measuring_moves_nothing(self, network: Network, loader: TensorLoader) -> None:
        """No weight, no batch-norm statistic, no gradient; its passes are counted."""
        defense = EWC(network(norm=True), fisher_samples=70)
        defense.fit(loader, [attack()], plan=PLAN)
        before = state_of(defense)
        gradients = [parameter.grad for parameter in defense.parameters()]
        passes = replace(defense.passes)
        defense.end(stage(data=loader))
        assert equal(state_of(defense), before)
        assert all(one is other.grad for one, other in zip(gradients, defense.parameters(), strict=True))
        # FGSM asks once a point, and F once more.
        assert defense.passes.forwards - passes.forwards == 140
        assert defense.passes.backwards - passes.backwards == 140


def test_si_by_its_trajectory(network: Network, loader: TensorLoader) -> None:
    """Ω from gradients computed anew along the recorded path, over two stages; steps with the penalty too."""
    defense = SI(confident(network), strength=2.0, damping=0.01)
    path: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    craft = defense.craft

    def recording(met: Any, x: Tensor, y: Tensor) -> Tensor:
        x_adv = craft(met, x, y)
        now = {name: value.clone() for name, value in defense.model.state_dict().items()}
        path.append((x_adv, y, now))
        return x_adv

    defense.craft = recording  # type: ignore[method-assign]
    plan = TrainPlan(epochs=2, lr=0.3, max_grad_norm=0.5)
    model = network()
    omega = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for number, name in enumerate(("fgsm", "pgd")):
        path.clear()
        history = defense.fit(loader, [attack(name)], plan=plan)
        places = [now for _, _, now in path]
        places.append({key: value.clone() for key, value in defense.model.state_dict().items()})
        integral = {key: torch.zeros_like(value) for key, value in omega.items()}
        penalties = []
        for step, (x_adv, y, now) in enumerate(path):
            model.load_state_dict(now)
            gradients = torch.autograd.grad(F.cross_entropy(model(x_adv), y), list(model.parameters()))
            for (key, _), g in zip(model.named_parameters(), gradients, strict=True):
                integral[key] -= g * (places[step + 1][key] - now[key])
            penalties.append(sum(float((omega[key] * (now[key] - places[0][key]) ** 2).sum()) for key in now))
        if number:
            found = sum(losses["penalty"] for losses in history) / 2
            assert found == pytest.approx(mean(penalties), rel=1e-3)
            assert found > 1e-3
        for key in omega:
            moved = places[-1][key] - places[0][key]
            omega[key] = (omega[key] + integral[key] / (moved**2 + 0.01)).clamp_min(0)
            torch.testing.assert_close(defense._omega[key], omega[key], atol=1e-4, rtol=1e-3)
    assert max(float(value.max()) for value in omega.values()) > 0.1


@pytest.mark.parametrize("norm", [None, 0.1])
def test_a_step_of_si(network: Network, norm: float | None) -> None:
    """w' = w − lr·∇L with L = CE + c·Σ Ω (θ − θ*)², clipped as a whole."""
    defense = SI(confident(network), strength=2.0)
    defense.begin(stage())
    theta = trained(defense.model)
    defense._omega = {name: torch.full_like(value, 0.3) for name, value in theta.items()}
    for value in theta.values():
        value.data += 0.05
    before = {name: value.detach().clone() for name, value in theta.items()}
    x, y = points(1)
    plan = TrainPlan(lr=0.1, momentum=0.0, weight_decay=0.0, max_grad_norm=norm)
    x_adv = defense.craft(attack(), x, y)
    gradients = torch.autograd.grad(F.cross_entropy(defense.model(x_adv), y), list(theta.values()))
    whole = [g + 2 * 2 * 0.3 * 0.05 for g in gradients]
    length = torch.cat([g.flatten() for g in whole]).norm().item()
    defense.step(x, y, Stage(1, (attack(),), plan), defense.configure_optimizer(plan))
    for (name, value), g in zip(theta.items(), whole, strict=True):
        expected = before[name] - 0.1 * g * min(1.0, (norm or math.inf) / length)
        torch.testing.assert_close(value.detach(), expected, atol=1e-6, rtol=1e-4)


def test_lwf_loss(network: Network) -> None:
    """CE + λ·KL at temperature T from the old model, in float64; 0 where f is still f_old."""
    defense = LwF(confident(network).double(), weight=3.0, temperature=2.0)
    defense.begin(stage(index=2))
    (old,) = defense._old
    x_adv, y = points(1, dtype=torch.float64)
    assert defense.distilled(x_adv, y)["distillation"].item() == pytest.approx(0, abs=1e-12)
    for parameter in defense.model.parameters():
        parameter.data.mul_(0.5)
    terms = defense.distilled(x_adv, y)
    expected = divergence(softmax(old, x_adv, 2.0), softmax(defense.model, x_adv, 2.0))
    assert expected > 0.01
    assert terms["distillation"].item() == pytest.approx(expected, abs=1e-10)
    ce = cross_entropy(softmax(defense.model, x_adv), y)
    assert terms["loss"].item() == pytest.approx(ce + 3 * expected, abs=1e-10)
    assert not any(parameter.requires_grad for parameter in old.parameters())


def test_lwf_keeps_f_old_for_its_stage_alone(network: Network, loader: TensorLoader) -> None:
    """In eval mode, unmoved, no part of the weights; gone when the stage ends."""
    defense = LwF(network(norm=True))
    defense.fit(loader, [attack()], plan=PLAN)
    before = state_of(defense.model)
    names = list(defense.state_dict())

    def look(_now: object) -> None:
        (old,) = defense._old
        assert not any(module.training for module in old.modules())
        assert equal(state_of(old), before)
        assert list(defense.state_dict()) == names

    defense.fit(loader, [attack("pgd")], plan=PLAN, progress=look)
    assert defense._old == ()
    assert not equal(state_of(defense.model), before)


class TestReplay:
    """A bounded memory of clean images, attacked anew."""

    def test_memory_is_even_over_classes(self) -> None:
        """As even as the room allows; a rare class has all of its points; in batches as at once."""
        draws = torch.Generator().manual_seed(0)
        labels = torch.cat([torch.zeros(500), torch.ones(300), torch.full((4,), 2)]).long()
        labels = labels[torch.randperm(len(labels), generator=draws)]
        keys = torch.rand(len(labels), generator=draws, dtype=torch.float64)
        at_once = balanced(labels, keys, 25)
        assert sorted(labels[at_once].bincount().tolist()) == [4, 10, 11]
        for label in range(3):
            mine = keys[labels == label].sort().values
            kept = keys[at_once][labels[at_once] == label].sort().values
            assert torch.equal(kept, mine[: len(kept)])
        held = torch.empty(0, dtype=torch.int64)
        for batch in torch.arange(len(labels)).split(37):
            held = torch.cat([held, batch])
            held = held[balanced(labels[held], keys[held], 25)]
        assert set(held.tolist()) == set(at_once.tolist())
        assert len(balanced(labels[:7], keys[:7], 25)) == 7

    def test_it_keeps_clean_images_with_their_labels(self, network: Network, digits: DataSet) -> None:
        """Of the training data, each once, unaugmented though training is augmented."""
        split = Split(digits.train.x[:150], digits.train.y[:150])
        defense = Replay(network(), memory=30)
        plan = TrainPlan(epochs=1, augmentation=("crop", "flip"))
        defense.fit(TensorLoader(split, 50, seed=0), [attack()], plan=plan)
        images, labels, _ = defense._kept
        assert images.shape == (30, 1, 8, 8)
        assert labels.bincount().tolist() == [3] * 10
        places = [
            [i for i in range(150) if torch.equal(split.x[i], image) and split.y[i] == label]
            for image, label in zip(images, labels, strict=True)
        ]
        assert all(len(found) == 1 for found in places)
        assert len({found[0] for found in places}) == 30

    def test_loss(self, network: Network) -> None:
        """CE over x̃ and M̃, each earlier attack on an equal share of M, crafted on the present f."""
        defense = Replay(confident(network), memory=9)
        x, y = points(1, 20)
        for met in (attack("fgsm"), attack("gaussian-noise")):
            defense.end(stage(met, data=[(x, y)]))
        met = attack("pgd")
        defense.generator = keyed_generator("replay")
        loss = defense.loss(x[:6], y[:6], stage(met, index=3))
        defense.generator = keyed_generator("replay")
        x_adv = defense.craft(met, x[:6], y[:6])
        old, labels = defense.draw(6)
        assert len({image.numpy().tobytes() for image in old}) == 6
        crafted = old.clone()
        crafted[0::2] = defense.craft(attack("fgsm"), old[0::2], labels[0::2])
        crafted[1::2] = defense.craft(attack("gaussian-noise"), old[1::2], labels[1::2])
        p = softmax(defense.model, torch.cat([x_adv, crafted]))
        assert loss.item() == pytest.approx(cross_entropy(p, torch.cat([y[:6], labels])), abs=1e-5)
        assert len(defense.draw(100)[1]) == 9

    def test_spec_says_what_is_held(self, network: Network, loader: TensorLoader) -> None:
        """The room is a parameter; the images held stand beside it, also after rebuilding."""
        for room, held in ((30, 30), (1000, 150)):
            defense = Replay(network(), memory=room)
            assert defense.spec()["memory"] == 0
            defense.fit(loader, [attack()], plan=PLAN)
            spec = defense.spec()
            assert (spec["parameters"]["memory"], spec["memory"]) == (room, held)
            rebuilt = Replay(network(), memory=room)
            rebuilt.load_spec(spec)
            assert rebuilt.spec() == spec
        assert Replay.info.memory == Replay(network()).memory == 200


@pytest.mark.parametrize("name", ["air", *CONTINUAL])
def test_stage_one_is_adversarial_training(network: Network, loader: TensorLoader, name: str) -> None:
    """The same weights as AT's of the same seed, bit for bit; after two stages others."""
    at, defense = AT(network(norm=True), seed=4), registry.build(name, network(norm=True), seed=4)
    for met, alike in (("pgd", True), ("fgsm", False)):
        for each in (at, defense):
            each.fit(loader, [attack(met)], plan=PLAN)
        assert equal(at, defense) is alike


@pytest.mark.parametrize("name", CONTINUAL)
def test_memory_is_flat_within_stages(network: Network, loader: TensorLoader, name: str) -> None:
    """At the worst moment of each from the second on; the contract looks between them."""
    parameters = {"memory": 20} if name == "replay" else {"fisher_samples": 5} if name == "ewc" else {}
    defense = registry.build(name, network(), parameters=parameters)
    sizes: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}

    def look(now: Progress) -> None:
        sizes[now.stage].add(held_bytes(defense))

    for _ in sizes:
        defense.fit(loader, [attack()], plan=PLAN, progress=look)
    assert max(sizes[2]) == max(sizes[3])


@pytest.mark.quick(r"trades|replay|ewc")
@every_baseline
def test_it_learns(network: Network, digits: DataSet, name: str) -> None:
    """A little training in reduced precision: far better than chance, clean and under its own attack."""
    split = Split(digits.train.x[:600], digits.train.y[:600])
    parameters = {"fisher_samples": 100} if name == "ewc" else {}
    defense = registry.build(name, network(), parameters=parameters)
    plan = TrainPlan(epochs=2, lr=0.1, schedule="one-cycle", max_grad_norm=1.0, mixed_precision="on")
    for text in ("fgsm", "pgd"):
        defense.fit(TensorLoader(split, 30, seed=0), [attack(text, eps=0.1)], plan=plan)
    x, y = digits.validation.x, digits.validation.y
    x_adv = defense.craft(attack("pgd", eps=0.1), x, y)
    with torch.no_grad():
        clean, robust = ((defense(z).argmax(1) == y).double().mean().item() for z in (x, x_adv))
    assert clean > 0.6
    assert robust > 0.35
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("name", OWN_SEARCH)
def test_a_joint_batch_is_split_over_the_attacks(network: Network, name: str) -> None:
    """By stride, each share in the ball of its attack (of N-FGSM's, three times as large)."""
    defense = registry.build(name, confident(network))
    given: list[Tensor] = []
    defense.model.register_forward_hook(
        lambda module, inputs, _output: given.append(inputs[0].detach()) if module.training else None
    )
    x = torch.full((12, 1, 8, 8), 0.5)
    y = torch.arange(12) % 10
    met = (attack("pgd", eps=0.1), attack("bim", eps=0.02))
    plan = TrainPlan(epochs=2, lr=0.01)
    defense.fit([(x, y)], met, plan=plan)
    factor = 3 if name == "n-fgsm" else 1
    away = (given[-1] - x).abs().amax(dim=(1, 2, 3))
    assert all(0.02 * factor < float(size) <= 0.1 * factor + 1e-6 for size in away[0::2])
    assert all(0.01 * factor < float(size) <= 0.02 * factor + 1e-6 for size in away[1::2])


@pytest.mark.parametrize("name", OWN_SEARCH)
def test_other_norms_are_refused(network: Network, loader: TensorLoader, name: str) -> None:
    """One line that names those allowed, before anything is trained."""
    others = {
        "pgd-l1": "is bounded in l1",
        "fmn-l0": "is bounded in l0",
        "rotation-translation": "has no norm",
    }
    for other, why in others.items():
        defense = registry.build(name, network())
        told = rf"^{name} cannot train against '{other}', which {why}.*\(allowed: linf, l2\)$"
        with pytest.raises(InputError, match=told):
            defense.fit(loader, [attack(other)], plan=PLAN)
        assert equal(defense.model, network())


def test_a_run_that_would_be_refused_later_does_not_begin(
    tmp_path: Path, small_options: dict[str, Any]
) -> None:
    """The attack of the second stage is looked at before the first: nothing is written."""
    options = {**small_options, "sequence": "fgsm,pgd-l1"}
    with pytest.raises(InputError, match="trades cannot train against 'pgd-l1'"):
        run("trades", runs_dir=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()
