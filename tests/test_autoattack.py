"""AutoAttack: the published members and budgets, against pyautoattack in the same run; screen beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from targets import Cast, Target
from torch import Tensor, nn

from advbench.data import DataSet, Split
from advbench.evaluation.evaluate import evaluate
from attacks_pool import InputError, pool, verify
from attacks_pool.attacks import autoattack, screen, strongest
from attacks_pool.calling.guard import untouched
from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.search import auto_pgd as apgd

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.2, "l2": 1.0, "l1": 2.0}
POINTS = 120
SHORT = autoattack.Budget(steps=15, queries=150, targets=9, targets_l1=5, restarts=2, eot_steps=2)


def named(norm: str) -> str:
    return "autoattack" if norm == "linf" else f"autoattack-{norm}"


@pytest.fixture
def model(robust_digits: Target) -> nn.Module:
    return robust_digits.model


@pytest.fixture
def data(digits: DataSet) -> Split:
    return Split(digits.test.x[:POINTS], digits.test.y[:POINTS])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_members_and_budgets_are_those_of_pyautoattack(norm: str, version: str) -> None:
    pyautoattack = pytest.importorskip("pyautoattack")
    theirs = pyautoattack.AutoAttack(nn.Flatten(), norm=NORMS[norm], eps=EPS[norm], version=version)
    end = "" if norm == "linf" else f"-{norm}"
    ours = autoattack.members(norm, version)
    assert [name.removesuffix(end) if end else name for name, _ in ours] == list(theirs.attacks_to_run)
    knobs: dict[str, Any] = {name.removesuffix(end) if end else name: given for name, given in ours}
    assert knobs["apgd-ce"]["steps"] == theirs.apgd.n_iter == 100
    assert knobs["apgd-ce"]["restarts"] == theirs.apgd.n_restarts
    if version == "rand":
        assert knobs["apgd-ce"]["eot_steps"] == knobs["apgd-dlr"]["eot_steps"] == theirs.apgd.eot_iter == 20
        return
    assert knobs["apgd-t"] == {
        "steps": theirs.apgd_targeted.n_iter,
        "restarts": theirs.apgd_targeted.n_restarts,
        "targets": theirs.apgd_targeted.n_target_classes,
    }
    assert knobs["fab-t"] == {
        "steps": theirs.fab.n_iter,
        "restarts": 1,
        "targets": theirs.fab.n_target_classes,
    }
    assert knobs["square"]["steps"] == theirs.square.n_queries == 5000
    if version == "plus":
        assert knobs["fab"]["restarts"] == theirs.fab.n_restarts == 5


@pytest.mark.quick(r".*-linf|linf-.*|linf")
@pytest.mark.parametrize("norm", NORMS)
def test_it_leaves_no_more_than_pyautoattack_at_one_budget(
    norm: str, model: nn.Module, data: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyautoattack = pytest.importorskip("pyautoattack")
    monkeypatch.setattr(autoattack, "PUBLISHED", SHORT)
    attack = pool.get(named(norm), eps=EPS[norm])
    row = evaluate(lambda _: model, data, [(attack, POINTS)], stage=0, seed=0)
    theirs = pyautoattack.AutoAttack(model, norm=NORMS[norm], eps=EPS[norm], seed=0, version="standard")
    for part in (theirs.apgd, theirs.apgd_targeted):
        part.n_iter = part.n_iter_orig = SHORT.steps
    theirs.apgd.n_restarts = SHORT.restarts if norm == "l1" else 1
    theirs.fab.n_iter, theirs.square.n_queries = SHORT.steps, SHORT.queries
    with isolated_randomness(0, data.x.device), untouched(model):
        x_adv = theirs.run_standard_evaluation(data.x, data.y, batch_size=POINTS)[0]
    verdict = verify(model, data.x, data.y, shrunk(x_adv, data.x, norm), norm=norm, eps=EPS[norm])
    assert row.cells[1].invalid == 0
    assert 0 < row.robust[0].sum() <= int((verdict.robust.numpy() & row.clean).sum()) + 2


@pytest.mark.quick(r"linf")
@pytest.mark.parametrize("norm", NORMS)
def test_no_member_draws_by_which_points_are_left(
    norm: str, model: nn.Module, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With early stop, and in portions: beside other points a point gets the same from every member."""
    budget = autoattack.Budget(steps=8, queries=60, targets=3, restarts=2)
    monkeypatch.setattr(autoattack, "PUBLISHED", budget)
    monkeypatch.setattr(apgd, "ELEMENTS", 24 * 64)
    # A small budget, that most points stand and meet every member.
    attack = pool.get(named(norm), eps=EPS[norm] / 4, version="plus")
    exact, half = Cast(model), 20
    x, y = digits.test.x[: 2 * half], digits.test.y[: 2 * half]
    crafted = []
    for others in (x[:half], 1 - x[:half]):
        draws, batch = torch.Generator().manual_seed(0), torch.cat([others, x[half:]])
        crafted.append(attack(exact, batch, y, generator=draws, early_stop=True) - batch)
    torch.testing.assert_close(crafted[0][half:], crafted[1][half:], rtol=0, atol=1e-6)
    assert not torch.allclose(crafted[0][:half], crafted[1][:half], rtol=0, atol=1e-3)
    assert (exact(x[half:] + crafted[0][half:]).argmax(1) == y[half:]).any()


def shrunk(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """A peer's point without its rounding error, which our verifier does not forgive."""
    return x + (x_adv - x) * (1 - 1e-5) if norm != "linf" else x_adv.clamp(x - EPS[norm], x + EPS[norm])


@pytest.mark.quick(r"standard-.*")
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_it_uses_the_classes_that_exist(
    classes: int, version: str, monkeypatch: pytest.MonkeyPatch, network: Any
) -> None:
    monkeypatch.setattr(
        autoattack, "PUBLISHED", autoattack.Budget(steps=4, queries=10, restarts=2, eot_steps=2)
    )
    model = network(classes=classes).eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = pool.get("autoattack", eps=0.3, version=version)
    x_adv = attack(model, x, y, generator=torch.Generator().manual_seed(0))
    verdict = verify(model, x, y, x_adv, norm="linf", eps=0.3)
    assert not verdict.invalid.any()
    assert not verdict.robust.all()


def test_its_budget_is_not_a_knob() -> None:
    assert sorted(pool.get("autoattack", eps=0.1).knobs) == ["eps", "version"]
    with pytest.raises(InputError, match="steps"):
        pool.get("autoattack", eps=0.1, steps=10)
    with pytest.raises(InputError, match="standard"):
        pool.get("autoattack", eps=0.1, version="standart")


def test_screen_takes_a_tenth_of_autoattacks_passes() -> None:
    for norm in NORMS:
        ensemble, cheap = named(norm), "screen" if norm == "linf" else f"screen-{norm}"
        assert [name for name, _ in screen.members(norm)]
        costs = [pool.info(name).passes(pool.get(name, eps=1.0).knobs) for name in (ensemble, cheap)]
        assert costs[0] is not None
        assert costs[1] is not None
        assert sum(costs[1]) <= 0.1 * sum(costs[0])


@pytest.mark.slow
def test_screen_comes_near_autoattack(model: nn.Module, data: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "PUBLISHED", autoattack.Budget(steps=50, queries=300))
    robust = {
        name: evaluate(lambda _: model, data, [(pool.get(name, eps=0.2), POINTS)], stage=0, seed=0)
        for name in ("screen", "autoattack")
    }
    left = {name: int(row.robust[0].sum()) for name, row in robust.items()}
    assert left["screen"] <= left["autoattack"] + 2


@pytest.mark.parametrize("norm", NORMS)
def test_strongest_takes_no_more_passes_than_autoattack(norm: str) -> None:
    """Both as they come, and both for models that answer at random."""
    for mine, theirs in (({}, {}), ({"eot": 20}, {"version": "rand"})):
        costs = [
            pool.info(name).passes(pool.get(name, eps=1.0, **knobs).knobs)
            for name, knobs in ((named(norm).replace("autoattack", "strongest"), mine), (named(norm), theirs))
        ]
        assert costs[0] is not None
        assert costs[1] is not None
        assert sum(costs[0]) <= 1.05 * sum(costs[1])


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_strongest_leaves_no_more_than_autoattack(
    norm: str, model: nn.Module, data: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On points of which some fall and some stand; with fewer queries of Square in both."""
    monkeypatch.setattr(autoattack, "PUBLISHED", autoattack.Budget(steps=50, queries=300))
    monkeypatch.setattr(strongest, "BUDGET", strongest.StrongestBudget(queries=100))
    names = named(norm), named(norm).replace("autoattack", "strongest")
    left = []
    for name in names:
        row = evaluate(lambda _: model, data, [(pool.get(name, eps=EPS[norm]), 60)], stage=0, seed=0)
        left.append(int(row.robust[0].sum()))
    assert 0 < left[1] <= left[0] < row.cells[1].clean_correct


@pytest.mark.parametrize("norm", NORMS)
def test_strongest_averages_every_gradient_of_a_random_model(norm: str) -> None:
    """No member searches a single draw; more draws leave fewer starts."""
    starts = []
    for eot in (2, 20):
        found = strongest.members(norm, eot)
        assert all(knobs["eot_steps"] == eot for _, knobs in found)
        starts.append(found[-1][1]["restarts"])
    assert starts == [10, 1]
