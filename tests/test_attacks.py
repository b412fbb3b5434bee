"""The contract of attacks: every registered attack keeps it, and planted bad ones are caught.

An attack is held to it by name from the pool, so a new file in ``attacks_pool/attacks`` is covered without
a line here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from targets import Cast
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import Attack, AttackInfo, InputError, ModelState, Pool, pool, verify
from attacks_pool.attacks import autoattack, screen, strongest
from attacks_pool.metadata import Knob

POINTS = 6
SHORTEST: dict[str, int] = {
    "steps": 5,
    "scout_steps": 2,
    "eot_steps": 2,
    "binary_search_steps": 3,
    "restarts": 1,
    "targets": 3,
    "angles": 5,
    "shifts": 3,
    "samples": 8,
}
"""Knobs that are cut to these values, where their defaults are larger, to keep the tests fast."""
QUERIES = 40
"""What ``steps`` is cut to where a step is one query and not, as with ``samples``, many."""
BLIND = ("noise", "spatial", "colour", "corruption")
"""Families that need not raise the loss: they do not look at the model."""


@pytest.fixture(autouse=True)
def _short_ensembles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ensembles have no knob for their budget: their members are cut short here."""
    short = autoattack.Budget(steps=2, queries=6, targets=2, targets_l1=2, restarts=2, eot_steps=2)
    monkeypatch.setattr(autoattack, "PUBLISHED", short)
    cut = {"steps": 2, "short": 2, "scout": 2, "targets": 2, "restarts": 2, "queries": 6}
    monkeypatch.setattr(screen, "BUDGET", {**screen.BUDGET, **cut})
    brief = strongest.StrongestBudget(
        steps=2, short=2, scout=1, starts=1, rounds=2, targets=2, broad=2, queries=6, averaged=(2, 1, 2)
    )
    monkeypatch.setattr(strongest, "BUDGET", brief)


@dataclass(frozen=True)
class Case:
    """An attack, a network in train mode that it meets, and points that the network gets right."""

    attack: Attack
    model: nn.Module
    x: Tensor
    y: Tensor

    def craft(self, seed: int = 0, **changes: Any) -> Tensor:
        """x_adv with the generator seeded by ``seed``."""
        given = {"generator": torch.Generator().manual_seed(seed), **changes}
        x, y = given.pop("x", self.x), given.pop("y", self.y)
        return self.attack(self.model, x, y, **given)

    def robust(self, x_adv: Tensor) -> Tensor:
        """(N,) whether each point survives, by the verifier."""
        info = self.attack.info
        return verify(
            self.model, self.x, self.y, x_adv, norm=info.norm, eps=self.attack.eps, kind=info.kind
        ).robust


def network(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Convolution, batch norm with statistics of its own, dropout; frozen in part, in train mode."""
    channels, height, width = shape
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        norm = nn.BatchNorm2d(6)
        model = nn.Sequential(
            nn.Conv2d(channels, 6, 3, stride=2, padding=1),
            norm,
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(6 * (height // 2) * (width // 2), classes),
        )
        model(torch.rand(16, *shape))
    model[0].requires_grad_(False)
    norm.eval()
    return model


def shortened(name: str, budget: str, source: Pool = pool) -> Attack:
    """The registered attack with few steps, at the budget of the table."""
    info = source.info(name)
    single = info.access == "black-box" and "samples" not in info.knobs
    short = {**SHORTEST, "steps": QUERIES} if single else SHORTEST
    known = {knob: info.knobs[knob].default for knob in short if knob in info.knobs}
    knobs: dict[str, Any] = {knob: min(short[knob], default) for knob, default in known.items()}
    return source.get(name, budget=budget, **knobs)


def make_case(attack: Attack, shape: tuple[int, int, int], classes: int) -> Case:
    """Points with some pixels at 0 and 1, labelled as the network sees them."""
    model = network(shape, classes)
    draws = torch.Generator().manual_seed(1)
    x = (1.4 * torch.rand(POINTS, *shape, generator=draws) - 0.2).clamp(0, 1)
    flags = {module: module.training for module in model.modules()}
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    for module, training in flags.items():
        module.training = training
    return Case(attack, model, x, y)


# The contract: each check raises AssertionError where an attack breaks it.


def keeps_shape_and_bounds(case: Case) -> None:
    x, y = case.x.clone(), case.y.clone()
    info = case.attack.info
    for early_stop in (False, True):
        x_adv = case.craft(early_stop=early_stop)
        assert x_adv.shape == x.shape
        assert x_adv.dtype == torch.float32
        assert not x_adv.requires_grad
        assert x_adv.data_ptr() != case.x.data_ptr()
        verdict = verify(case.model, x, y, x_adv, norm=info.norm, eps=case.attack.eps, kind=info.kind)
        assert not verdict.invalid.any()
    assert torch.equal(case.x, x)
    assert torch.equal(case.y, y)


def acts(case: Case) -> None:
    """Every point moves; an attack that looks at the model raises its loss."""
    x_adv = case.craft()
    moved = (x_adv - case.x).abs().flatten(1).amax(1) > 0
    # A corruption may miss a point: three pixels in a hundred are few of 64.
    assert moved.any() if case.attack.info.family == "corruption" else moved.all()
    if case.attack.info.family not in BLIND:
        model = case.model.eval()
        before, after = F.cross_entropy(model(case.x), case.y), F.cross_entropy(model(x_adv), case.y)
        assert after > before


def must_draw(info: AttackInfo) -> bool:
    """A minimal-norm search starts at the clean point first, and later starts need not find less."""
    return "restarts" in info.knobs and info.kind != "minimal-norm"


def repeats_from_its_generator(case: Case) -> None:
    for early_stop in (False, True):
        first, again = case.craft(early_stop=early_stop), case.craft(early_stop=early_stop)
        assert torch.equal(first, again)
    if must_draw(case.attack.info):
        # What restarts is worth anything only if it draws.
        assert not torch.equal(first, case.craft(seed=1, early_stop=False))


def repeats_from_the_global_seed(case: Case) -> None:
    results = []
    for seed in (5, 5, 6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            results.append(case.craft(generator=None))
    assert torch.equal(results[0], results[1])
    if must_draw(case.attack.info):
        assert not torch.equal(results[0], results[2])


def ignores_neighbours(case: Case) -> None:
    """Other points in the first half of the batch, or none, leave the results of the second half alone."""
    half = POINTS // 2
    # In float64, since float32's rounding depends on the batch and a sign or Adam's quotient magnifies it.
    case = replace(case, model=Cast(case.model))
    # The others come first: who draws for fewer points than the batch has would draw the same for its first.
    others = torch.cat([1 - case.x[:half], case.x[half:]])
    # Draws are made for the batch at once, so only an attack that draws nothing keeps them in a half.
    draws = not torch.equal(case.craft(), case.craft(seed=1))
    for early_stop in (False, True):
        whole = case.craft(early_stop=early_stop)[half:]
        assert torch.allclose(whole, case.craft(x=others, early_stop=early_stop)[half:], rtol=0, atol=1e-6)
        if not draws:
            alone = case.craft(x=case.x[half:], y=case.y[half:], early_stop=early_stop)
            assert torch.allclose(whole, alone, rtol=0, atol=1e-6)


def loses_nothing_by_early_stop(case: Case) -> None:
    case = replace(case, model=Cast(case.model))
    survivors = case.robust(case.craft(early_stop=False))
    assert not (case.robust(case.craft(early_stop=True)) & ~survivors).any()


def leaves_the_model(case: Case) -> None:
    parameters = list(case.model.parameters())
    for parameter in parameters[::2]:
        parameter.grad = torch.full_like(parameter, 0.5)
    held = [parameter.grad for parameter in parameters]
    wanted = [parameter.requires_grad for parameter in parameters]
    before = ModelState(case.model)
    case.craft()
    case.craft(early_stop=True)
    assert before.changes() == []
    assert all(now.grad is was for now, was in zip(parameters, held, strict=True))
    assert [parameter.requires_grad for parameter in parameters] == wanted


def leaves_the_random_state(case: Case) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    case.craft()
    case.craft(generator=None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def takes_small_batches(case: Case) -> None:
    for size in (0, 1):
        x, y = case.x[:size], case.y[:size]
        for early_stop in (False, True):
            x_adv = case.craft(x=x, y=y, early_stop=early_stop)
            assert x_adv.shape == x.shape
            assert x_adv.dtype == torch.float32


def trains_inside_the_ball(case: Case) -> None:
    info, trained = case.attack.info, case.attack.for_training()
    x_adv = trained(case.model, case.x, case.y, generator=torch.Generator().manual_seed(0))
    verdict = verify(case.model, case.x, case.y, x_adv, norm=info.norm, eps=trained.eps, kind="budgeted")
    assert not verdict.invalid.any()
    assert not torch.equal(x_adv, case.x)


def works_without_grad_mode(case: Case) -> None:
    usual = case.craft()
    with torch.no_grad():
        assert torch.equal(case.craft(), usual)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        x_adv = case.craft(x=case.x.clone(), y=case.y.clone())
        assert torch.equal(x_adv, usual)
        assert torch.is_inference_mode_enabled()
    # Training goes on from the result, which a tensor of inference mode would forbid.
    assert not x_adv.is_inference()


def takes_logits_of_any_type(case: Case) -> None:
    """Under autocast logits are half precision; a model may also answer in float64."""
    for outside in (torch.bfloat16, torch.float16, torch.float64):
        cast = replace(case, model=Cast(case.model, torch.float32, outside))
        for early_stop in (False, True):
            assert cast.craft(early_stop=early_stop).dtype == torch.float32


class Flat(nn.Module):
    """Logits (N, 4) of a kind that gives a search no direction."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Logits with class 0 ahead."""
        ahead = F.one_hot(torch.zeros(len(x), dtype=torch.long), 4).float()
        total = x.flatten(1).sum(1, keepdim=True)
        if self.kind == "no gradient":
            return ahead
        if self.kind == "zero gradient":
            return ahead + 0 * total
        if self.kind == "gradient not a number":
            return ahead + 0 * (total - total).sqrt()
        return ahead * torch.nan + total


FLAT = ("no gradient", "zero gradient", "gradient not a number", "logits not numbers")


def survives_flat_models(case: Case) -> None:
    info, y = case.attack.info, torch.zeros_like(case.y)
    for kind in FLAT:
        for early_stop in (False, True):
            x_adv = case.attack(Flat(kind), case.x, y, early_stop=early_stop)
            verdict = verify(
                Flat(kind), case.x, y, x_adv, norm=info.norm, eps=case.attack.eps, kind=info.kind
            )
            assert not verdict.invalid.any(), kind


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        keeps_shape_and_bounds,
        acts,
        repeats_from_its_generator,
        repeats_from_the_global_seed,
        ignores_neighbours,
        loses_nothing_by_early_stop,
        leaves_the_model,
        leaves_the_random_state,
        takes_small_batches,
        trains_inside_the_ball,
        works_without_grad_mode,
        takes_logits_of_any_type,
        survives_flat_models,
    )
}
SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
CASES = {"digits": (10, 3), "cifar10": (10,)}
"""Numbers of classes, the most telling case of each budget first."""
ONCE = (
    repeats_from_the_global_seed,
    leaves_the_model,
    leaves_the_random_state,
    works_without_grad_mode,
    takes_logits_of_any_type,
    survives_flat_models,
)
"""What has nothing to do with the size of images and the number of classes: one case is enough."""
QUICK = (keeps_shape_and_bounds, acts)
"""What the quick suite checks of every attack; the rest it checks of one attack of each family."""
OF_EACH_FAMILY = {pool.info(name).family: name for name in reversed(pool.names())}.values()


def treated(name: str) -> list[Any]:
    """The checks of an attack with the budgets whose images its metadata lets it treat."""
    allowed = pool.info(name).channels
    budgets = [budget for budget, shape in SHAPES.items() if allowed is None or shape[0] in allowed]
    cases = [(budget, classes) for budget in budgets for classes in CASES[budget]]
    found = []
    for label, check in CHECKS.items():
        for case in cases[:1] if check in ONCE else cases:
            quick = case is cases[0] and (name in OF_EACH_FAMILY or check in QUICK)
            found.append(pytest.param(name, *case, label, marks=() if quick else pytest.mark.slow))
    return found


@pytest.mark.parametrize(
    ("name", "budget", "classes", "check"), [case for name in pool.names() for case in treated(name)]
)
def test_attack_keeps_the_contract(name: str, budget: str, classes: int, check: str) -> None:
    CHECKS[check](make_case(shortened(name, budget), SHAPES[budget], classes))


# Planted attacks: the contract must catch each.

planted = Pool()
PLANTED: dict[str, str] = {}
"""Planted attack and the check that must catch it."""
Planter = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


def plant(
    caught_by: Callable[[Case], None], *, norm: Any = "linf", kind: Any = "budgeted", restarts: bool = False
) -> Planter:
    """Registers a bad attack in a pool of its own."""

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = function.__name__.replace("_", "-")
        PLANTED[name] = caught_by.__name__
        knobs = {"restarts": Knob(1, "starts")} if restarts else {}
        info = AttackInfo(
            name=name, family="noise", norm=norm, access="white-box", kind=kind, paper=None, knobs=knobs
        )
        planted.register(info)(function)
        return function

    return add


@plant(keeps_shape_and_bounds)
def honest(_model: nn.Module, x: Tensor, _y: Tensor, **given: Any) -> Tensor:
    """A good one: brighter by eps where there is room, else darker."""
    eps = given["eps"]
    return torch.where(x + eps <= 1, x + eps, x - eps)


@plant(repeats_from_the_global_seed, restarts=True)
def loaded_dice(_model: nn.Module, x: Tensor, _y: Tensor, **given: Any) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return (x + given["eps"] * torch.rand(x.shape, generator=draws)).clamp(0, 1)


@plant(ignores_neighbours)
def batch_mean(_model: nn.Module, x: Tensor, _y: Tensor, **given: Any) -> Tensor:
    return (x + given["eps"] * x.mean()).clamp(0, 1)


@plant(loses_nothing_by_early_stop)
def lazy(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    if given["early_stop"]:
        return x.clone()
    x_adv = x.clone()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv.requires_grad_()), y), x_adv)
        x_adv = torch.clamp(x_adv.detach() + 0.1 * gradient.sign(), 0, 1)
        x_adv = x_adv.clamp(x - given["eps"], x + given["eps"])
    return x_adv


@plant(leaves_the_model)
def moves_statistics(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    model.train()
    model(x)
    return honest(model, x, y, **given)


@plant(takes_small_batches)
def needs_company(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    assert len(x) > 1
    return honest(model, x, y, **given)


@plant(takes_logits_of_any_type, restarts=True)
def needs_float32(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    best = torch.zeros(len(x))
    best[y >= 0] = F.cross_entropy(model(x), y, reduction="none").detach()
    return honest(model, x, y, **given)


@plant(survives_flat_models)
def needs_gradient(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x.requires_grad_()), y), x)
    return (x.detach() + given["eps"] * gradient / gradient.abs().max()).clamp(0, 1)


@pytest.mark.parametrize("name", [name for name in PLANTED if name != "honest"])
def test_contract_catches_the_planted(name: str) -> None:
    case = make_case(shortened(name, "digits", planted), (1, 8, 8), 10)
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS[PLANTED[name]](case)


@planted.register(
    AttackInfo(name="vandal", family="noise", norm="linf", access="white-box", paper=None),
)
def vandal(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Tensor:
    """Overwrites what it is given and leaves a mess; what it returns is in order."""
    x_adv = honest(model, x, y, **given)
    x.zero_()
    y.zero_()
    model.train()
    model.requires_grad_(False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return x_adv


def documented() -> Pool:
    """A pool with the example of the documentation."""
    source = Pool()
    text = (Path(__file__).resolve().parent.parent / "docs" / "add-attack.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "AttackInfo(" in block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attacks_pool.register", source.register)
        exec(block, {"torch": torch, "__name__": "readme"})
    return source


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["honest", "vandal", "my-noise"])
def test_good_attacks_keep_the_contract(name: str, check: str) -> None:
    """Also one whose mess the wrapper has to undo, and the example of the documentation."""
    source = documented() if name == "my-noise" else planted
    CHECKS[check](make_case(shortened(name, "digits", source), (1, 8, 8), 10))


# What the wrapper around every attack refuses and guards.


@pytest.mark.parametrize(
    ("model", "named"), [(lambda x: x.flatten(1), "a function"), (nn.Linear, "the class Linear")]
)
def test_what_is_no_module_is_refused_in_one_line(model: Any, named: str) -> None:
    case = make_case(shortened("pgd", "digits"), (1, 8, 8), 10)
    with pytest.raises(InputError) as caught:
        case.attack(model, case.x, case.y)
    assert str(caught.value).endswith(f"needs a torch.nn.Module from images to logits, not {named}")


@pytest.mark.parametrize(
    "result", [lambda x: x[:-1], lambda x: x[:, 0], lambda x: x.tolist(), lambda _x: None]
)
def test_result_of_another_shape_is_refused_in_one_line(result: Callable[[Tensor], Any]) -> None:
    """It cannot be matched to its points, so nothing can be said of it."""
    case = make_case(shortened("honest", "digits", planted), (1, 8, 8), 10)
    broken = replace(case.attack, function=lambda _model, x, _y, **_given: result(x))
    with pytest.raises(InputError, match="attack 'honest' must return a tensor like x") as caught:
        broken(case.model, case.x, case.y)
    assert "\n" not in str(caught.value)


def test_state_is_put_back_when_the_model_raises() -> None:
    class Broken(nn.Sequential):
        def forward(self, _x: Tensor) -> Tensor:
            raise RuntimeError("no power")

    model = Broken(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    model[0].weight.grad = torch.ones(2, 2)
    before, state = torch.get_rng_state(), ModelState(model)
    case = make_case(shortened("pgd", "digits"), (1, 8, 8), 10)
    with pytest.raises(RuntimeError, match="no power"):
        case.attack(model, case.x, case.y)
    assert state.changes() == []
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_same_attack_serves_a_model_that_changes() -> None:
    """Nothing of the first call is left in the second."""
    case = make_case(shortened("apgd", "digits"), (1, 8, 8), 10)
    first = case.craft()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.neg_()
    case.craft()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.neg_()
    assert torch.equal(case.craft(), first)


def test_without_a_generator_batches_draw_differently() -> None:
    """Under one global state two batches of one shape must not get the same noise."""
    attack = pool.get("gaussian-noise", eps=0.1)
    model, y = nn.Flatten(), torch.zeros(2, dtype=torch.long)
    grey, greyer = torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 0.4)
    assert not torch.allclose(attack(model, grey, y) - grey, attack(model, greyer, y) - greyer, atol=1e-4)
