"""AIR: its loss against one in the paper's notation, its switches, f_old, and the draws of its replays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attack, cross_entropy, divergence, equal, mean, points, softmax, state_of
from torch import nn

from attacks_pool.calling.randomness import keyed_generator
from defenses import AIR, Stage, TrainPlan

PLAN = TrainPlan(epochs=1, lr=0.05)
TERMS = {"isotropic": "lambda_i", "anisotropic": "lambda_a", "regulariser": "lambda_r"}

Network = Callable[..., nn.Sequential]
Loader = Callable[..., Any]


def second_stage(network: Network, *, norm: bool = False, **parameters: Any) -> AIR:
    """AIR in the middle of its second stage: f has moved away from f_old."""
    defense = AIR(network(norm=norm), **parameters)
    # Confident predictions, so that every term is large enough to tell from a wrong one.
    defense.model[-1].weight.data.mul_(10)
    defense.begin(Stage(2, (attack(),), PLAN))
    moved = network(norm=norm, seed=1).state_dict()
    for name, value in defense.model.state_dict().items():
        if value.is_floating_point():
            value.add_(3 * moved[name])
    return defense


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_terms_are_those_of_the_paper(network: Network, distance: str) -> None:
    """Each term, and their weighted sum, to 1e-10 in float64; f_old is the left side of both KLs."""
    defense = second_stage(network, lambda_i=2.0, lambda_a=3.0, lambda_r=5.0, distance=distance).double()
    f, old = defense.model, defense._old[0].double()
    x_adv, x_iso, x_mix, y = points(3, dtype=torch.float64)
    terms = defense.replay_loss(x_adv, x_iso, x_mix, y)
    p, q = softmax(f, x_adv), softmax(f, x_iso)
    rows = zip(p, q, strict=True)
    squares = mean([sum((a - b) ** 2 for a, b in zip(*row, strict=True)) for row in rows])
    slow = {
        "ce": cross_entropy(p, y),
        "isotropic": divergence(softmax(old, x_iso), q),
        "anisotropic": divergence(softmax(old, x_mix), softmax(f, x_mix)),
        "regulariser": squares if distance == "mse" else divergence(p, q),
    }
    assert min(slow.values()) > 1e-2
    assert abs(slow["isotropic"] - divergence(q, softmax(old, x_iso))) > 1e-3
    weighted = slow["ce"] + 2 * slow["isotropic"] + 3 * slow["anisotropic"] + 5 * slow["regulariser"]
    expected = {**slow, "loss": weighted}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_regulariser_has_gradients_to_both_sides(network: Network, distance: str) -> None:
    """D pulls f(x̃) and f(x_iso) together: both get a gradient."""
    defense = second_stage(network, distance=distance)
    x_adv, x_iso, x_mix, y = points(3)
    x_adv.requires_grad_()
    x_iso.requires_grad_()
    terms = defense.replay_loss(x_adv, x_iso, x_mix, y)
    for gradient in torch.autograd.grad(terms["regulariser"], (x_adv, x_iso)):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("term", TERMS)
def test_a_switch_changes_exactly_its_term(network: Network, term: str) -> None:
    """λ = 0 takes one term out of the loss and of its gradient, and leaves every other as it is."""
    weights = {"lambda_i": 2.0, "lambda_a": 3.0, "lambda_r": 5.0}
    whole = second_stage(network, **weights)
    without = second_stage(network, **{**weights, TERMS[term]: 0.0})
    given = points(3)
    full, rest = whole.replay_loss(*given), without.replay_loss(*given)
    assert set(full) - set(rest) == {term}
    for name in rest:
        if name != "loss":
            assert rest[name].item() == pytest.approx(full[name].item(), abs=1e-7), name
    expected = full["loss"] - weights[TERMS[term]] * full[term]
    assert rest["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    wanted = torch.autograd.grad(expected, list(whole.parameters()))
    got = torch.autograd.grad(rest["loss"], list(without.parameters()))
    for left, right in zip(wanted, got, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    taken = torch.autograd.grad(whole.replay_loss(*given)[term], list(whole.parameters()))
    assert max(float(gradient.abs().max()) for gradient in taken) > 1e-3


@pytest.mark.parametrize("term", TERMS)
def test_a_switch_changes_no_draw(network: Network, digits: Any, term: str) -> None:
    """In a whole step too, the other terms are those of the loss with every term on."""
    x, y = digits.train.x[:32], digits.train.y[:32]
    terms = []
    for weights in ({}, {TERMS[term]: 0.0}):
        defense = second_stage(network, **weights).train()
        defense.generator = keyed_generator("a switch")
        stage = Stage(2, (attack("pgd"),), PLAN)
        terms.append({name: float(value.detach()) for name, value in defense.loss(x, y, stage).items()})
    full, rest = terms
    assert set(full) - set(rest) == {term}
    for name in set(rest) - {"loss"}:
        assert rest[name] == pytest.approx(full[name], abs=1e-7), name


def test_without_replay_it_is_the_cross_entropy(network: Network) -> None:
    """All three switched off: one forward of x̃ alone, and f_old is not asked."""
    defense = second_stage(network, lambda_i=0.0, lambda_a=0.0, lambda_r=0.0)
    defense._old[0].register_forward_hook(lambda *_: pytest.fail("f_old was asked"))
    seen = []
    defense.model.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    terms = defense.replay_loss(*points(3))
    assert set(terms) == {"loss", "ce"}
    assert seen == [12]


def test_the_three_batches_share_one_forward(network: Network, digits: Any) -> None:
    """x̃, x_iso and x_mix go through f together in train mode; crafting and f_old run in eval mode."""
    defense = second_stage(network, norm=True).train()
    calls: dict[str, list[tuple[bool, int]]] = {"f": [], "f_old": []}
    for name, model in (("f", defense.model), ("f_old", defense._old[0])):
        model.register_forward_hook(
            lambda module, inputs, _, name=name: calls[name].append((module.training, len(inputs[0])))
        )
    before = state_of(defense._old[0])
    defense.loss(digits.train.x[:16], digits.train.y[:16], Stage(2, (attack("pgd"),), PLAN))
    assert [call for call in calls["f"] if call[0]] == [(True, 48)]
    assert len(calls["f"]) > 1
    assert calls["f_old"] == [(False, 16), (False, 16)]
    assert equal(state_of(defense._old[0]), before)


def test_f_old_is_frozen_and_no_part_of_the_defense(network: Network, loader: Loader) -> None:
    """Through a stage f_old keeps its values, stays in eval mode, and is neither a weight nor a module."""
    defense = AIR(network(norm=True))
    names, modules = list(defense.state_dict()), len(list(defense.modules()))
    defense.fit(loader(), [attack()], plan=PLAN)
    before = state_of(defense.model)
    seen: list[nn.Module] = []

    def progress(_now: object) -> None:
        (old,) = defense._old
        seen.append(old)
        assert not any(module.training for module in old.modules())
        assert not any(parameter.requires_grad for parameter in old.parameters())
        assert all(parameter.grad is None for parameter in old.parameters())
        assert equal(state_of(old), before)
        assert list(defense.state_dict()) == names
        assert len(list(defense.modules())) == modules

    defense.train()
    defense.fit(loader(), [attack("pgd")], plan=PLAN, progress=progress)
    assert len(seen) == 4
    assert all(old is seen[0] for old in seen)
    assert not equal(state_of(defense.model), before)


def test_nothing_is_kept_from_stage_to_stage(network: Network, loader: Loader) -> None:
    """f_old goes when its stage ends: no copy of a model outlives it, however many stages there are."""
    defense = AIR(network())
    data = loader(64)
    copies: list[weakref.ref[nn.Module]] = []

    def progress(now: Any) -> None:
        if now.stage > 1:
            copies.append(weakref.ref(defense._old[0]))

    for _ in range(3):
        defense.fit(data, [attack()], plan=PLAN, progress=progress)
        gc.collect()
        assert defense._old == ()
        assert all(copy() is None for copy in copies)
    assert len(copies) == 2


def test_isotropic_replay_adds_clipped_noise(network: Network) -> None:
    """x_iso − x̃ has mean 0 and deviation σ where nothing is clipped, and x_iso stays in [0, 1]."""
    defense = AIR(network(), sigma=0.07)
    grey = torch.full((64, 1, 32, 32), 0.5)
    noise = defense.isotropic(grey) - 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=1e-3)
    assert float(noise.std()) == pytest.approx(0.07, rel=0.01)
    # A normal distribution has 31.7 % beyond one deviation and 4.55 % beyond two.
    assert float((noise.abs() > 0.07).float().mean()) == pytest.approx(0.3173, abs=0.01)
    assert float((noise.abs() > 0.14).float().mean()) == pytest.approx(0.0455, abs=0.005)
    for edge in (0.0, 1.0):
        replay = defense.isotropic(torch.full((64, 1, 8, 8), edge))
        assert replay.min() >= 0
        assert replay.max() <= 1
        assert float((replay == edge).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(AIR(network(), sigma=0.0).isotropic(grey), grey)


@pytest.mark.parametrize(("beta", "variance"), [(1.0, 1 / 12), (4.0, 1 / 36), (0.5, 1 / 8)])
def test_anisotropic_replay_mixes_pairs(network: Network, beta: float, variance: float) -> None:
    """x_mix_i = w_i·x̃_i + (1 − w_i)·x̃_j with j a shuffle and w ~ Beta(b, b): variance 1 / (4(2b + 1))."""
    defense = AIR(network(), beta=beta)
    count = 900
    # Image i is white at pixel i alone, so that a mixture shows its parents and its weight.
    x = torch.eye(count).view(count, 1, 30, 30)
    mixed = defense.anisotropic(x).flatten(1)
    assert torch.allclose(mixed.sum(1), torch.ones(count), atol=1e-6)
    own = mixed.diagonal().double()
    other = mixed - torch.diag(mixed.diagonal())
    assert int((other > 0).sum(1).max()) == 1
    assert int((other > 0).sum(0).max()) == 1
    mixing = own[(other > 0).any(1)]
    assert len(mixing) > 0.99 * count
    assert float(mixing.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(mixing.var()) == pytest.approx(variance, rel=0.15)
    partner = other.argmax(1)[(other > 0).any(1)]
    assert len(partner.unique()) == len(partner)


@pytest.mark.parametrize("replay", ["isotropic", "anisotropic"])
def test_replays_are_drawn_with_the_generator(
    network: Network, replay: str, global_randomness: Callable[[], bool]
) -> None:
    """Equal seeds draw the same, other seeds and later calls do not; nothing global moves."""
    x = points(1)[0]
    defenses = [AIR(network(), seed=seed) for seed in (0, 0, 1)]
    first, same, other = (getattr(defense, replay)(x) for defense in defenses)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, getattr(defenses[0], replay)(x))
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert global_randomness()


def test_state_between_stages_has_no_old_model(network: Network, loader: Loader) -> None:
    """Between stages there is nothing to keep beside the weights; what was there before goes."""
    defense = AIR(network())
    defense.fit(loader(64), [attack()], plan=PLAN)
    assert defense.training_state()["old"] is None
    resumed = second_stage(network)
    resumed.load_training_state(defense.training_state())
    assert resumed._old == ()
    resumed.load_state_dict(defense.state_dict())
    for each in (defense, resumed):
        each.fit(loader(64), [attack("pgd")], plan=PLAN)
    assert equal(defense, resumed)


def test_forward_passes_count_the_old_model(network: Network, loader: Loader) -> None:
    """Of 64 points: FGSM asks once; then 3·64 through f in one pass, and 2·64 through f_old."""
    defense = AIR(network())
    data = loader(64)
    defense.fit(data, [attack()], plan=PLAN)
    assert (defense.passes.forwards, defense.passes.backwards) == (128, 128)
    defense.fit(data, [attack()], plan=PLAN)
    assert defense.passes.forwards - 128 == 64 + 3 * 64 + 2 * 64
    assert defense.passes.backwards - 128 == 64 + 3 * 64
