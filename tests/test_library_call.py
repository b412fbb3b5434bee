"""What a library call, ``pool.get(name)(model, x, y)``, does by itself: ensembles hand on, copies serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attacks_pool.attack as calling
from attacks_pool import count_passes, pool
from attacks_pool.fast.copy import SearchModel


class Net(nn.Module):
    """A small network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Net()
        net(torch.rand(32, 1, 8, 8))
    return net.eval()


@pytest.fixture
def points(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that searches run on, in order; every call is worth a copy."""
    monkeypatch.setattr(calling, "WORTH_COPYING", 0)
    seen: list[nn.Module] = []
    make: Callable[..., nn.Module] = calling.search_model

    def noted(*given: Any, **options: Any) -> nn.Module:
        seen.append(make(*given, **options))
        return seen[-1]

    monkeypatch.setattr(calling, "search_model", noted)
    return seen


def test_an_ensemble_hands_on_what_its_members_have_left(
    model: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    """Without being asked; told not to, every member attacks every point. Both fool the same points."""
    x, y = points
    counts, left = [], []
    for early_stop in (None, False):
        with count_passes(model) as passes:
            attack = pool.get("screen", eps=0.3)
            found = attack(
                model, x, y, generator=torch.Generator().manual_seed(0), early_stop=early_stop, exact=True
            )
        counts.append(passes.forwards)
        left.append(model(found).argmax(1) == y)
    assert counts[0] < counts[1] / 5
    assert torch.equal(*left)


def test_an_ensemble_in_training_and_a_single_attack_run_on_every_point(
    model: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    """Where points fall at the first step, all steps are made nonetheless."""
    x, y = points
    for attack in (pool.get("pgd", eps=0.3, steps=7), pool.get("screen", eps=0.3).for_training()):
        counts = []
        for early_stop in (None, False):
            with count_passes(model) as passes:
                attack(model, x, y, generator=torch.Generator().manual_seed(0), early_stop=early_stop)
            counts.append(passes.forwards)
        assert counts[0] == counts[1]


def test_a_white_box_search_runs_on_a_copy(
    model: nn.Module, points: tuple[Tensor, Tensor], asked: list[nn.Module]
) -> None:
    """Its successes are those of the model; the model's weights and modes stay as they were."""
    x, y = points
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    found = pool.get("pgd", eps=0.3)(model, x, y, generator=torch.Generator().manual_seed(0))
    assert [type(one) for one in asked] == [SearchModel]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    exact = pool.get("pgd", eps=0.3)(
        model, x, y, generator=torch.Generator().manual_seed(0), early_stop=False, exact=True
    )
    model.eval()
    assert len(asked) == 1
    assert torch.equal(model(found).argmax(1) == y, model(exact).argmax(1) == y)


@pytest.mark.parametrize("name", ["square", "rays"])
def test_a_black_box_attack_queries_the_model_itself(
    name: str, model: nn.Module, points: tuple[Tensor, Tensor], asked: list[nn.Module]
) -> None:
    """Its queries can be counted."""
    pool.get(name, eps=0.1, steps=5)(model, *points)
    assert not asked


def test_training_searches_the_model_itself(
    model: nn.Module, points: tuple[Tensor, Tensor], asked: list[nn.Module]
) -> None:
    """A copy would be made for every batch."""
    pool.get("pgd", eps=0.1).for_training()(model, *points)
    assert not asked


def test_a_copy_is_made_for_many_passes_alone(
    model: nn.Module, points: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 points take 10 steps without one, and 1,000 with one."""
    made: list[int] = []
    monkeypatch.setattr(calling, "search_model", lambda model, x, **_: made.append(len(x)) or model)
    pool.get("pgd", eps=0.1, steps=10)(model, *points)
    assert made == []
    pool.get("pgd", eps=0.1, steps=1000)(model, points[0][:11], points[1][:11])
    assert made == [11]


def test_draws_do_not_depend_on_the_copy(
    points: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that answers at random has no copy, and looking for one draws nothing."""
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.norm = net, nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand_like(x)
            return self.net(x + 0.2 * noise)  # type: ignore[no-any-return]

    model = Random().eval()
    found = []
    for worth in (0, 10**9):
        monkeypatch.setattr(calling, "WORTH_COPYING", worth)
        found.append(
            pool.get("pgd", eps=0.1, steps=3)(model, *points, generator=torch.Generator().manual_seed(0))
        )
    assert torch.equal(*found)
