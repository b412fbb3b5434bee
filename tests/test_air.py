"""AIR: its loss against one in the paper's notation, its switches, f_old, and the draws of its replays."""

from __future__ import annotations

import gc
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks_pool import InputError, pool
from attacks_pool.calling.randomness import keyed_generator
from defenses import AIR, AT, Stage, TrainPlan

PLAN = TrainPlan(epochs=1, lr=0.05)
TERMS = {"isotropic": "lambda_i", "anisotropic": "lambda_a", "regulariser": "lambda_r"}

Network = Callable[..., nn.Sequential]
Loader = Callable[..., Any]


def attack(name: str = "fgsm") -> Any:
    """An attack with the digits' budget."""
    return pool.get(name, budget="digits")


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


def points(count: int = 12, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x̃, x_iso, x_mix and y, all random."""
    draws = torch.Generator().manual_seed(3)
    images = [torch.rand(count, 1, 8, 8, generator=draws, dtype=dtype) for _ in range(3)]
    return images[0], images[1], images[2], torch.randint(10, (count,), generator=draws)


def softmax(model: nn.Module, x: Tensor) -> list[list[float]]:
    """p_k = exp(z_k) / Σ exp(z), a sample at a time."""
    rows = []
    with torch.no_grad():
        for image in x:
            powers = [math.exp(float(z)) for z in model(image[None])[0]]
            rows.append([power / sum(powers) for power in powers])
    return rows


def slow_divergence(p: list[list[float]], q: list[list[float]]) -> float:
    """KL(p ‖ q) = Σ_k p_k log(p_k / q_k), mean over samples."""
    total = 0.0
    for left, right in zip(p, q, strict=True):
        for a, b in zip(left, right, strict=True):
            total += a * math.log(a / b)
    return total / len(p)


def slow_terms(defense: AIR, old: nn.Module, *given: Tensor) -> dict[str, float]:
    """CE, the two KLs and D as the paper writes them."""
    x_adv, x_iso, x_mix, y = given
    f = defense.model
    new, replayed = softmax(f, x_adv), softmax(f, x_iso)
    ce = sum(-math.log(row[int(label)]) for row, label in zip(new, y, strict=True)) / len(new)
    if defense.distance == "mse":
        squares = [
            sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
            for left, right in zip(new, replayed, strict=True)
        ]
        regulariser = sum(squares) / len(squares)
    else:
        regulariser = slow_divergence(new, replayed)
    return {
        "ce": ce,
        "isotropic": slow_divergence(softmax(old, x_iso), replayed),
        "anisotropic": slow_divergence(softmax(old, x_mix), softmax(f, x_mix)),
        "regulariser": regulariser,
    }


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_terms_are_those_of_the_paper(network: Network, distance: str) -> None:
    """Each term, and their weighted sum, to 1e-10 in float64; f_old is the left side of both KLs."""
    defense = second_stage(network, lambda_i=2.0, lambda_a=3.0, lambda_r=5.0, distance=distance).double()
    old = defense._old[0].double()
    given = points(dtype=torch.float64)
    terms = {name: float(value.detach()) for name, value in defense.replay_loss(*given).items()}
    slow = slow_terms(defense, old, *given)
    for name, value in slow.items():
        assert terms[name] == pytest.approx(value, abs=1e-10), name
        assert value > 1e-2, name
    assert set(terms) == {"loss", *slow}
    weighted = slow["ce"] + 2 * slow["isotropic"] + 3 * slow["anisotropic"] + 5 * slow["regulariser"]
    assert terms["loss"] == pytest.approx(weighted, abs=1e-10)


def test_divergence_is_from_the_old_model(network: Network) -> None:
    """KL(f_old ‖ f): the other direction is another number."""
    defense = second_stage(network).double()
    old = defense._old[0].double()
    x_adv, x_iso, x_mix, y = points(dtype=torch.float64)
    term = float(defense.replay_loss(x_adv, x_iso, x_mix, y)["isotropic"].detach())
    before, now = softmax(old, x_iso), softmax(defense.model, x_iso)
    assert term == pytest.approx(slow_divergence(before, now), abs=1e-10)
    assert abs(term - slow_divergence(now, before)) > 1e-3


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_regulariser_has_gradients_to_both_sides(network: Network, distance: str) -> None:
    """D pulls f(x̃) and f(x_iso) together: both get a gradient."""
    defense = second_stage(network, distance=distance)
    x_adv, x_iso, x_mix, y = points()
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
    given = points()
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
        stage = Stage(2, (attack("pgd").for_training(),), PLAN)
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
    terms = defense.replay_loss(*points())
    assert set(terms) == {"loss", "ce"}
    assert seen == [12]


def test_the_three_batches_share_one_forward(network: Network, digits: Any) -> None:
    """x̃, x_iso and x_mix go through f together in train mode; crafting and f_old run in eval mode."""
    defense = second_stage(network, norm=True).train()
    calls: list[tuple[bool, int]] = []
    defense.model.register_forward_hook(
        lambda module, inputs, _output: calls.append((module.training, len(inputs[0])))
    )
    old_calls: list[tuple[bool, int]] = []
    defense._old[0].register_forward_hook(
        lambda module, inputs, _output: old_calls.append((module.training, len(inputs[0])))
    )
    statistics = defense._old[0][3].running_mean.clone()
    defense.loss(digits.train.x[:16], digits.train.y[:16], Stage(2, (attack("pgd").for_training(),), PLAN))
    assert [call for call in calls if call[0]] == [(True, 48)]
    assert len(calls) > 1
    assert old_calls == [(False, 16), (False, 16)]
    assert torch.equal(statistics, defense._old[0][3].running_mean)


def test_f_old_is_frozen_and_no_part_of_the_defense(network: Network, loader: Loader) -> None:
    """Through a stage f_old keeps its values, stays in eval mode, and is neither a weight nor a module."""
    defense = AIR(network(norm=True))
    names = list(defense.state_dict())
    modules = len(list(defense.modules()))
    first = loader()
    defense.fit(first, [attack()], plan=PLAN)
    before = {name: value.clone() for name, value in defense.model.state_dict().items()}
    seen: list[nn.Module] = []

    def progress(_now: object) -> None:
        (old,) = defense._old
        seen.append(old)
        assert not any(module.training for module in old.modules())
        assert not any(parameter.requires_grad for parameter in old.parameters())
        assert all(parameter.grad is None for parameter in old.parameters())
        for name, value in old.state_dict().items():
            assert torch.equal(value, before[name]), name

    defense.train()
    defense.fit(first, [attack("pgd")], plan=PLAN, progress=progress)
    assert len(seen) == 4
    assert all(old is seen[0] for old in seen)
    assert list(defense.state_dict()) == names
    assert len(list(defense.modules())) == modules
    assert len(list(defense.parameters())) == len(list(defense.model.parameters()))
    changed = [name for name, value in defense.model.state_dict().items() if not value.equal(before[name])]
    assert "0.weight" in changed


def test_nothing_is_kept_from_stage_to_stage(network: Network, loader: Loader) -> None:
    """f_old goes when its stage ends: no copy of a model outlives it, however many stages there are."""
    defense = AIR(network())
    data = loader(64)
    copies: list[weakref.ref[nn.Module]] = []

    def progress(now: Any) -> None:
        if now.stage > 1:
            copies.append(weakref.ref(defense._old[0]))

    counts = []
    for _ in range(4):
        defense.fit(data, [attack()], plan=PLAN, progress=progress)
        gc.collect()
        counts.append(sum(type(thing) is nn.Conv2d for thing in gc.get_objects()))
        assert defense._old == ()
        assert all(copy() is None for copy in copies)
    assert len(copies) == 3
    assert len(set(counts)) == 1


def test_stage_one_is_adversarial_training(network: Network, loader: Loader) -> None:
    """After one stage of one seed AIR and AT have the same weights, bit for bit; after two they differ."""
    air, at = AIR(network(), seed=4), AT(network(), seed=4)
    for name, same in (("pgd", True), ("fgsm", False)):
        for defense in (air, at):
            defense.fit(loader(seed=1), [attack(name)], plan=PLAN)
        equal = [torch.equal(a, b) for a, b in zip(air.parameters(), at.parameters(), strict=True)]
        assert all(equal) is same


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
    x = points()[0]
    defenses = [AIR(network(), seed=seed) for seed in (0, 0, 1)]
    first, same, other = (getattr(defense, replay)(x) for defense in defenses)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, getattr(defenses[0], replay)(x))
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert global_randomness()


def test_state_in_the_middle_of_a_stage_can_be_carried_on(network: Network, digits: Any) -> None:
    """Weights and training state, loaded elsewhere, give the loss that the stage would have had."""
    x, y = digits.train.x[:32], digits.train.y[:32]
    stage = Stage(2, (attack("pgd").for_training(),), PLAN)
    defense = second_stage(network, norm=True)
    defense.stages = 1
    defense.loss(x, y, stage)
    weights = {name: value.clone() for name, value in defense.state_dict().items()}
    state = pickle.loads(pickle.dumps(defense.training_state()))
    assert not any("old" in name for name in weights)
    wanted = {name: float(value.detach()) for name, value in defense.train().loss(x, y, stage).items()}
    resumed = AIR(network(norm=True, seed=9))
    resumed.load_state_dict(weights)
    resumed.load_training_state(state)
    assert resumed.stages == 1
    got = {name: float(value.detach()) for name, value in resumed.train().loss(x, y, stage).items()}
    assert got == wanted
    (old,) = resumed._old
    assert not old.training
    assert not any(parameter.requires_grad for parameter in old.parameters())
    assert resumed.passes == defense.passes


def test_state_between_stages_has_no_old_model(network: Network, loader: Loader) -> None:
    """Between stages there is nothing to keep beside the weights; what was there before goes."""
    defense = AIR(network())
    defense.fit(loader(64), [attack()], plan=PLAN)
    state = defense.training_state()
    assert state["old"] is None
    resumed = second_stage(network)
    resumed.load_training_state(state)
    assert resumed._old == ()
    resumed.load_state_dict(defense.state_dict())
    for each in (defense, resumed):
        each.fit(loader(64), [attack("pgd")], plan=PLAN)
    for name, value in defense.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lambda_i": -1.0}, "lambda_i=-1.0 must be at least 0"),
        ({"lambda_a": -0.1}, "lambda_a=-0.1 must be at least 0"),
        ({"lambda_r": math.nan}, "lambda_r=nan must be at least 0"),
        ({"lambda_r": math.inf}, "lambda_r=inf must be at least 0 and finite"),
        ({"sigma": -0.1}, "sigma=-0.1 must be at least 0"),
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"beta": math.nan}, "beta=nan must be above 0"),
        ({"distance": "mze"}, "unknown distance 'mze': did you mean 'mse'?"),
    ],
)
def test_bad_parameters_are_refused(network: Network, parameters: dict[str, Any], message: str) -> None:
    """One line that says what was given and what would do."""
    with pytest.raises(InputError) as caught:
        AIR(network(), **parameters)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_stage_needs_one_attack(network: Network, loader: Loader) -> None:
    """AIR meets its attacks one after another."""
    with pytest.raises(InputError, match="takes one attack a stage, not 2"):
        AIR(network()).fit(loader(64), [attack(), attack("pgd")], plan=PLAN)
    with pytest.raises(InputError, match="needs an attack"):
        AIR(network()).fit(loader(64), [], plan=PLAN)


def test_forward_passes_count_the_old_model(network: Network, loader: Loader) -> None:
    """Of 64 points: FGSM asks once; then 3·64 through f in one pass, and 2·64 through f_old."""
    defense = AIR(network())
    data = loader(64)
    defense.fit(data, [attack()], plan=PLAN)
    assert (defense.passes.forwards, defense.passes.backwards) == (128, 128)
    defense.fit(data, [attack()], plan=PLAN)
    assert defense.passes.forwards - 128 == 64 + 3 * 64 + 2 * 64
    assert defense.passes.backwards - 128 == 64 + 3 * 64
