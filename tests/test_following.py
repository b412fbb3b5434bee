"""Training crafts on a fast copy that follows the weights; it stays the same attack on the same model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attacks_pool.fast.copy
from attacks_pool import pool
from attacks_pool.fast.copy import SearchModel, search_model
from attacks_pool.fast.follow import Follower
from defenses import AIR, AT, Defense, TrainPlan, registry
from defenses.training.snapshot import Snapshot

SIDE = 16


def wide(*, norm: bool = True, seed: int = 0) -> nn.Sequential:
    """A network of more than half a million multiply-adds an image of 3×16×16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(24)] if norm else []
        layers += [nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(32 * 64, 5))


def batches(count: int = 3, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Random images whose label is where they are brightest."""
    draws = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        y = torch.randint(5, (size,), generator=draws)
        x = torch.rand(size, 3, SIDE, SIDE, generator=draws) * 0.5
        for row, label in enumerate(y.tolist()):
            x[row, :, 3 * label : 3 * label + 3] += 0.4
        found.append((x, y))
    return found


@pytest.fixture(autouse=True)
def _as_if_there_were_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 works on every processor, if slowly: the path is tested on all of them."""
    monkeypatch.setattr(attacks_pool.fast.copy, "has_bfloat16", lambda _device: True)


def moved(model: nn.Module) -> None:
    """A step of training: weights and batch-norm statistics change."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("norm", [True, False])
def test_the_copy_says_what_a_new_copy_says(norm: bool) -> None:
    model = wide(norm=norm)
    follower = Follower(model)
    x = batches()[0][0]
    for _ in range(2):
        moved(model)
        followed = follower.search_model(x)
        fresh = search_model(copy.deepcopy(model).eval(), x, reduced=True)
        assert isinstance(followed, SearchModel)
        assert isinstance(fresh, SearchModel)
        torch.testing.assert_close(followed(x), fresh(x), rtol=0, atol=0)
        exact = copy.deepcopy(model).eval()(x).detach()
        assert float((followed(x) - exact).abs().mean() / exact.std()) < 0.05
    assert model.training


class Hidden(nn.Module):
    """Its answer depends on something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.sign = wide(), 1.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.sign * self.inner(x)
        return logits


def test_a_copy_that_differs_is_not_searched() -> None:
    model = Hidden()
    follower = Follower(model)
    x = batches()[0][0]
    assert isinstance(follower.search_model(x), SearchModel)
    model.sign = -1.0
    assert follower.search_model(x) is model


def test_a_model_whose_structure_changes_is_searched_itself() -> None:
    model = wide()
    follower = Follower(model)
    model[0] = nn.Conv2d(3, 24, 5, padding=2)
    assert follower.search_model(batches()[0][0]) is model


class Uncopied(Hidden):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("no copies")


def test_a_model_that_refuses_to_be_copied_trains_all_the_same() -> None:
    defense = AT(Uncopied())
    history = defense.fit(batches(), [pool.get("pgd", eps=0.1)], plan=TrainPlan(epochs=1))
    assert history[0]["loss"] > 0


def fitted(
    kind: type[Defense], plan: TrainPlan, *, stages: int = 1, keep: Callable[[Snapshot], None] | None = None
) -> Defense:
    """Trained on two budgets of PGD."""
    defense = kind(wide(), seed=3)
    for eps in (0.05, 0.1)[:stages]:
        defense.fit(batches(), [pool.get("pgd", eps=eps)], plan=plan, checkpoint=keep)
    return defense


def test_training_leaves_the_model_as_evaluation_wants_it() -> None:
    defense = fitted(AT, TrainPlan(epochs=2))
    weight = defense.model[0].weight
    assert weight.is_contiguous()
    assert weight.dtype == torch.float32
    assert len(list(defense.modules())) == len(list(AT(wide()).modules()))
    assert not defense._follower
    with defense.searched(batches()[0][0]) as model:
        assert model is defense


def test_passes_on_the_copy_count() -> None:
    """Three batches of 16: seven steps of PGD and one of training, each forward and backward."""
    passes = fitted(AT, TrainPlan(epochs=1)).passes
    assert (passes.forwards, passes.backwards) == (48 * 8, 48 * 8)
    exact = fitted(AT, TrainPlan(epochs=1, mixed_precision="off")).passes
    assert exact == passes


@pytest.mark.quick(r"(AT|AIR)")
@pytest.mark.parametrize("kind", [AT, AIR, registry.resolve("trades")[0], registry.resolve("lwf")[0]])
def test_resumed_training_is_that_without_a_break(kind: type[Defense]) -> None:
    plan, kept = TrainPlan(epochs=2, lr=0.01), list[Snapshot]()
    whole = fitted(kind, plan, stages=2, keep=kept.append)
    snapshot = next(one for one in kept if one.stage == 2 and one.epoch == 1)
    resumed = kind(wide(seed=9), seed=3)
    resumed.fit(batches(), [pool.get("pgd", eps=0.1)], plan=plan, resume=snapshot)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_reduced_precision_is_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """``off`` trains in float32, and so does ``auto`` where the device has no instructions for less."""
    exact = fitted(AT, TrainPlan(epochs=1, mixed_precision="off")).state_dict()
    reduced = fitted(AT, TrainPlan(epochs=1)).state_dict()
    assert any(not torch.equal(exact[name], reduced[name]) for name in exact)
    monkeypatch.setattr(attacks_pool.fast.copy, "has_bfloat16", lambda _device: False)
    automatic = fitted(AT, TrainPlan(epochs=1)).state_dict()
    assert all(torch.equal(exact[name], automatic[name]) for name in exact)


def test_small_networks_train_in_float32(network: Callable[..., nn.Sequential], loader: Any) -> None:
    """Below half a million multiply-adds nothing changes."""
    states = []
    for precision in ("auto", "off"):
        defense = AT(network(), seed=1)
        plan = TrainPlan(epochs=1, mixed_precision=precision)  # type: ignore[arg-type]
        defense.fit(loader(64), [pool.get("pgd", eps=0.2)], plan=plan)
        states.append(defense.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
