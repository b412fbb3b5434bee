"""The parts of AutoAttack against the published ones at equal budgets; SPSA against exact gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.data import TensorLoader, load_dataset
from advbench.models import build_model
from attacks_pool import count_passes, pool, verify
from attacks_pool.attacks.spsa import summed_estimates
from attacks_pool.attacks.square import Pyramids, pyramids
from attacks_pool.calling.guard import untouched
from attacks_pool.calling.randomness import isolated_randomness, keyed_generator
from attacks_pool.fast.copy import SearchModel
from attacks_pool.losses import dlr, margin, targeted_dlr
from attacks_pool.search.auto_pgd import likeliest_others
from attacks_pool.search.auto_pgd_run import AscentPlan
from attacks_pool.verifier import distance
from defenses.methods.at import AT
from defenses.training.plan import TrainPlan

EPS = {"linf": 0.2, "l2": 0.6, "l1": 2.0}
POINTS, SEEDS, ONE_POINT = 200, (0, 1, 2), 0.01
PARTS = [
    kind + suffix for kind in ("apgd-ce", "apgd-dlr", "apgd-t", "square") for suffix in ("", "-l2", "-l1")
]
LAGS = {"apgd-dlr-l1": 0.05}
"""Where more than a point is left to the peer; AutoAttack has no such part."""
STEPS = {"apgd-t": 8, "square": 100}


@pytest.fixture(scope="module")
def target() -> tuple[nn.Module, Tensor, Tensor]:
    """The digits network trained against PGD, and points that it gets right."""
    data = load_dataset("digits")
    defense = AT(build_model("digits-cnn", num_classes=10, in_channels=1, image_size=8, seed=0))
    plan = TrainPlan(epochs=4, batch_size=64, lr=0.1, eps_warmup=1.0)
    defense.fit(TensorLoader(data.train, 64, seed=0), [pool.get("pgd", eps=EPS["linf"])], plan=plan)
    with torch.no_grad():
        right = (defense.eval()(data.test.x).argmax(1) == data.test.y).nonzero().flatten()[:POINTS]
    return defense, data.test.x[right], data.test.y[right]


def published(name: str, norm: str, steps: int, model: nn.Module, seed: int) -> Any:
    """pyautoattack's attack of the same budget; in l1 with the shrinking ball that AutoAttack gives it."""
    given: dict[str, Any] = {"norm": norm.capitalize() if norm == "linf" else norm.upper(), "eps": EPS[norm]}
    given |= {"seed": seed, "device": "cpu"}
    if name.startswith("square"):
        peer = pytest.importorskip("pyautoattack.square", reason="pyautoattack is the peer of square")
        return peer.SquareAttack(model, n_queries=steps, **given)
    peer = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is the peer of apgd")
    given |= {"n_iter": steps, "use_largereps": norm == "l1"}
    if name.startswith("apgd-t"):
        return peer.APGDAttack_targeted(model, n_target_classes=9, **given)
    return peer.APGDAttack(model, loss=name.split("-")[1], **given)


@pytest.mark.quick(r"apgd-ce|square-l2")
@pytest.mark.filterwarnings("ignore:there are")
@pytest.mark.parametrize("name", PARTS)
def test_part_is_as_strong_as_published(name: str, target: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Robust accuracy, mean over three seeds, at most one point above the peer's."""
    model, x, y = target
    norm = str(pool.info(name).norm)
    kind = name.removesuffix("-l2").removesuffix("-l1")
    steps = 20 if name == "apgd-t-l1" else STEPS.get(kind, 20)
    attack = pool.get(name, eps=EPS[norm], steps=steps)
    ours = theirs = 0
    for seed in SEEDS:
        x_adv = attack(model, x, y, generator=keyed_generator("parts", seed), early_stop=True)
        verdict = verify(model, x, y, x_adv, norm=norm, eps=EPS[norm])
        assert not verdict.invalid.any()
        ours += int(verdict.robust.sum())
        with isolated_randomness(seed, torch.device("cpu")), untouched(model):
            peer = published(name, norm, steps, model, seed).perturb(x, y)
        theirs += int(verify(model, x, y, peer, norm=norm, eps=EPS[norm]).robust.sum())
    # The budgets are such that the comparison can fail.
    assert 0 < theirs < len(SEEDS) * len(x)
    assert ours / len(SEEDS) / len(x) <= theirs / len(SEEDS) / len(x) + LAGS.get(name, ONE_POINT)


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of 4×4 images and points that it gets right."""
    draws = torch.Generator().manual_seed(classes)
    layer = nn.Linear(16, classes)
    layer.weight.data = torch.randn(classes, 16, generator=draws)
    x = 0.4 + 0.2 * torch.rand(32, 1, 4, 4, generator=draws)
    layer.bias.data = -(x.flatten(1) @ layer.weight.data.T).mean(0)
    model = nn.Sequential(nn.Flatten(), layer)
    return model, x, model(x).argmax(1)


@pytest.mark.quick(r".*-(2|4)")
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("name", [*PARTS, "spsa"])
def test_part_fools_models_of_few_classes(name: str, classes: int) -> None:
    model, x, y = linear(classes)
    eps = {"linf": 0.3, "l2": 1.0, "l1": 3.5}[str(pool.info(name).norm)]
    steps = 300 if name.startswith("square") else 25
    x_adv = pool.get(name, eps=eps, steps=steps)(model, x, y, generator=keyed_generator(0))
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.9


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("name", [*PARTS, "apgd", "spsa"])
def test_declared_cost_is_what_a_point_takes(name: str, early_stop: bool) -> None:
    """No point is fooled, so none stops early."""
    model, x, y = linear(4)
    knobs = {"steps": 7} | ({"eot_steps": 2} if "eot_steps" in pool.info(name).knobs else {})
    knobs |= {"restarts": 2} if "restarts" in pool.info(name).knobs else {}
    attack = pool.get(name, eps=1e-5, **knobs)
    with count_passes(model) as passes:
        x_adv = attack(model, x[:8], y[:8], early_stop=early_stop)
    assert (model(x_adv).argmax(1) == y[:8]).all()
    forwards, backwards = pool.info(name).passes(attack.knobs, 4) or (0, 0)
    assert (passes.forwards, passes.backwards) == (8 * forwards, 8 * backwards)


@pytest.mark.parametrize("name", [*PARTS, "apgd"])
def test_success_is_confirmed_by_the_exact_model(name: str) -> None:
    """A search model that sees success everywhere stops nothing; one that is right does."""
    model, x, y = linear(4)
    eps = {"linf": 0.3, "l2": 1.0, "l1": 3.5}[str(pool.info(name).norm)]
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


def test_early_stop_ends_every_target_of_a_point() -> None:
    model, x, y = linear(4)
    attack = pool.get("apgd-t", eps=0.4, steps=10)
    spent = []
    for early_stop in (False, True):
        with count_passes(model) as passes:
            attack(model, x, y, generator=keyed_generator(0), early_stop=early_stop)
        spent.append(passes.forwards)
    assert spent[1] < spent[0] / 3


def test_gradients_of_a_stochastic_model_are_averaged() -> None:
    """Noise in the logits that hides the slope of one draw does not hide that of many."""
    model, x, y = linear(2)

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
    model, x, y = linear(2)
    x = x[:2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(margin(model(x), y[:2]).sum(), x)
    signs = torch.rand(4000, 2, 1, 4, 4, generator=keyed_generator(0)).sub(0.5).sign()
    with torch.no_grad():
        estimate = summed_estimates(model, x.detach(), y[:2], signs, 0.01) / 4000
    assert F.cosine_similarity(estimate.flatten(1), slope.flatten(1)).min() > 0.99
    assert torch.allclose(estimate.flatten(1).norm(dim=1), slope.flatten(1).norm(dim=1), rtol=0.05)


@pytest.mark.slow
def test_spsa_is_nearly_as_strong_as_pgd(target: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = (part if isinstance(part, nn.Module) else part[:60] for part in target)
    left = {}
    for name, knobs in {"spsa": {"steps": 40}, "pgd": {"steps": 40}, "gaussian-noise": {}}.items():
        x_adv = pool.get(name, eps=EPS["linf"], **knobs)(model, x, y, generator=keyed_generator(0))
        left[name] = float((model(x_adv).argmax(1) == y).float().mean())
    assert left["spsa"] <= left["pgd"] + 0.1 < left["gaussian-noise"]
