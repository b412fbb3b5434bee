"""ASSL: the choice of the pool by hand, routing, the frozen backbone, and what is read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import attacks, equal, points, small, stopped_and_resumed
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import InputError
from attacks_pool.calling.randomness import keyed_generator
from defenses import ASSL, Stage, TrainPlan
from defenses.parts.lowrank import Route
from defenses.parts.pool import PoolBatches, gathered, keys_of, outliers, sparseness, spread

PLAN = TrainPlan(epochs=5, lr=0.05, eps_warmup=0)


class Counting:
    """Batches of digits that note which images are read."""

    def __init__(self, digits: Any, count: int = 60, size: int = 20) -> None:
        self.x, self.y = digits.train.x[:count], digits.train.y[:count]
        self.size = size
        self.reads = 0

    def __len__(self) -> int:
        return len(self.y) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.x.split(self.size), self.y.split(self.size), strict=True):
            self.reads += len(x)
            yield x, y


def build(**given: Any) -> ASSL:
    """A defense of a small network, with few cells and experts."""
    given = {"share": 0.4, "cells": 3, "neighbours": 2, "experts": 3, "rank": 2, "coverage": 0.0} | given
    return ASSL(small(), **given)


@pytest.fixture(scope="module")
def divided(digits: Any) -> ASSL:
    """A trained one, whose experts are far from zero."""
    defense = build()
    with pytest.warns(UserWarning, match="adapters reach only"):
        defense.fit(Counting(digits), attacks(), plan=PLAN)
    for task in range(3):
        for one in defense._adapter(task):
            one.data += 0.3 * torch.randn(one.shape, generator=keyed_generator(task))
    return defense


class TestPool:
    """Sparse points of every cell, without outliers."""

    def test_sparseness_by_brute_force(self) -> None:
        """The distance to the k-th neighbour in the own cell, or to the furthest of fewer."""
        e = np.random.default_rng(0).normal(size=(30, 3))
        cells = np.array([0] * 20 + [1] * 7 + [2] * 2 + [3])
        found = sparseness(e, cells, 4)
        for i in range(30):
            others = [j for j in range(30) if j != i and cells[j] == cells[i]]
            away = sorted(float(np.sqrt(((e[i] - e[j]) ** 2).sum())) for j in others)
            assert found[i] == pytest.approx(away[min(3, len(away) - 1)] if away else 0.0)

    def test_outliers(self) -> None:
        """Above Q3 + 1.5·IQR."""
        r = np.array([1.0, 2, 3, 4, 5, 8, 8.1])
        assert outliers(r).tolist() == [False] * 7
        r[-1] = 12.6
        assert outliers(r).tolist() == [False] * 6 + [True]

    def test_equal_quotas(self) -> None:
        """Of each cell as many, the sparsest more likely; dropped points last."""
        cells, r = np.array([0] * 50 + [1] * 50 + [2] * 2), np.ones(102)
        left_out = np.zeros(102, dtype=bool)
        left_out[:3] = True
        rows = spread(r, cells, left_out, 22, 0)
        assert len(set(rows)) == 22
        assert np.bincount(cells[rows]).tolist() == [10, 10, 2]
        assert not set(rows) & {0, 1, 2}
        assert sorted(spread(r, cells, left_out, 102, 0)) == list(range(102))
        assert set(spread(r, cells, left_out, 102, 0)[-3:]) == {0, 1, 2}
        r[10:20] = 1000.0
        assert len(set(spread(r, cells, left_out, 20, 1)) & set(range(10, 20))) >= 8

    def test_batches_are_permutations_of_the_pool(self) -> None:
        """As many and as large as before; the same for the same epoch, in any order."""
        x, y = torch.arange(7.0).view(7, 1, 1, 1), torch.arange(7)
        pool = PoolBatches([(x[:3], y[:3])], 1)
        assert len(pool) == 1
        pool.choose(x, y, [5, 5, 5, 6])
        epochs = []
        for epoch in (0, 1, 0):
            pool.set_epoch(epoch)
            batches = list(pool)
            assert [len(labels) for _, labels in batches] == [5, 5, 5, 6]
            labels = torch.cat([labels for _, labels in batches])
            for turn in labels.split(7):
                assert sorted(turn.tolist()) == list(range(7))
            assert torch.equal(torch.cat([images for images, _ in batches]).flatten(), labels.float())
            epochs.append(labels.tolist())
        assert epochs[0] == epochs[2] != epochs[1]

    def test_images_are_found_again(self, digits: Any) -> None:
        data = Counting(digits)
        wanted = [keys_of(data.x)[row] for row in (40, 3, 59)]
        x, y = gathered(iter(data), wanted)
        assert torch.equal(x, data.x[[40, 3, 59]])
        assert torch.equal(y, data.y[[40, 3, 59]])

    @pytest.mark.parametrize("select", ["both", "density", "random"])
    @pytest.mark.parametrize("share", [0.1, 0.45, 1.0])
    def test_only_the_share_is_read(self, digits: Any, select: Any, share: float) -> None:
        """After the selection no image of the data; the pool has no duplicates and the exact size."""
        data = Counting(digits)
        defense = build(select=select, share=share)
        pools: list[tuple[int, int]] = []
        trained: set[bytes] = set()

        def watch(_: Any) -> None:
            assert defense._batches is not None
            assert defense._batches.x is not None
            pools.append((len(set(keys_of(defense._batches.x))), data.reads))
            trained.update(keys_of(defense._batches.x))

        defense.fit(data, attacks(), plan=PLAN.model_copy(update={"augmentation": ()}), progress=watch)
        used = round(share * 60)
        assert pools[-1][0] == len(trained) == used == defense.report()["images_used"]
        assert pools[0][0] == ((used + 1) // 2 if select == "both" else used)
        grown = next(number for number, (size, _) in enumerate(pools) if size == used)
        assert len({reads for _, reads in pools[grown:]}) == 1
        assert pools[-1][1] == (120 if select != "both" else 240)
        assert defense._batches is None

    @pytest.mark.parametrize("need", ["easy", "hard"])
    def test_need_is_the_loss_under_attack(self, digits: Any, need: Any, monkeypatch: Any) -> None:
        """Of the images outside the pool, those with the lowest or the highest loss join it."""
        data = Counting(digits)
        defense = build(need=need)
        losses = {key: float(row) for row, key in enumerate(keys_of(data.x))}
        monkeypatch.setattr(defense, "_needs", lambda x, *_: [losses[key] for key in keys_of(x)])
        seen: list[list[bytes]] = []
        defense.fit(data, attacks(), plan=PLAN, progress=lambda _: seen.append(list(defense._chosen)))
        first, last = seen[0], seen[-1]
        dropped = int(defense.report()["images_dropped"])  # type: ignore[arg-type]
        rest = sorted((key for key in losses if key not in first), key=losses.__getitem__)
        added = last[len(first) :]
        assert len(added) == 12
        best = rest[: 12 + dropped] if need == "easy" else rest[-12 - dropped :]
        assert set(added) <= set(best)


class TestSpaces:
    """Routing by the distance to centres of frozen features."""

    def test_weights_by_hand(self, divided: ASSL) -> None:
        """Softmax of −‖e − μ‖²/τ; they sum to 1; e is the penultimate feature without adapters."""
        (x, _) = points(1)
        plain = divided.merged(None)
        e = F.normalize(nn.Sequential(*list(plain)[:-1])(x), dim=1)
        torch.testing.assert_close(divided.embed(x), e)
        away = torch.stack([(e - centre).square().sum(1) for centre in divided.centres], 1)
        found = divided.router_weights(x)
        torch.testing.assert_close(found, torch.softmax(-away / 0.1, 1))
        torch.testing.assert_close(found.sum(1), torch.ones(12))

    def test_a_low_temperature_is_hard(self, divided: ASSL) -> None:
        soft, hard = copy.deepcopy(divided), copy.deepcopy(divided)
        soft.temperature, hard.hard = 1e-7, True
        (x, _) = points(1)
        torch.testing.assert_close(soft.router_weights(x), hard.router_weights(x))
        torch.testing.assert_close(soft(x), hard(x))

    def test_gradients_flow_through_the_weights(self, divided: ASSL) -> None:
        """Against finite differences in float64."""
        defense = copy.deepcopy(divided).double()
        x = points(1)[0].double()[:1].requires_grad_()

        def first(image: Tensor) -> Tensor:
            return defense.router_weights(image)[0, 0]

        (slope,) = torch.autograd.grad(first(x), x)
        step = torch.zeros_like(x)
        for place in [(0, 0, 2, 3), (0, 0, 5, 5)]:
            step.zero_()[place] = 1e-6
            with torch.no_grad():
                change = (first(x + step) - first(x - step)) / 2e-6
            assert float(slope[place]) == pytest.approx(float(change), abs=1e-6)
        assert slope.any()

    def test_one_expert_is_its_merged_network(self, digits: Any) -> None:
        defense = build(experts=1)
        defense.fit(Counting(digits), attacks(), plan=PLAN)
        for one in defense._adapter(0):
            one.data += 0.3
        (x, _) = points(1)
        torch.testing.assert_close(defense(x), defense.merged(0)(x), atol=1e-4, rtol=1e-4)
        with defense.routing.along(Route(task=0)):
            torch.testing.assert_close(defense(x), defense.merged(0)(x), atol=1e-4, rtol=1e-4)

    def test_the_backbone_is_frozen_at_the_border(self, digits: Any) -> None:
        """Bit for bit, batch-norm statistics included, while experts train with their own rate."""
        states: list[tuple[bool, dict[str, Tensor], float]] = []

        class Noting(ASSL):
            def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
                rest = {
                    name: value.clone() for name, value in self.state_dict().items() if ".down" not in name
                }
                rest = {name: value for name, value in rest.items() if ".up" not in name}
                states.append((self.divided, rest, self.watched.param_groups[0]["lr"]))
                return super().loss(x, y, stage)

            def configure_optimizer(self, plan: TrainPlan) -> Any:
                self.watched: Any = super().configure_optimizer(plan)
                return self.watched

        defense = Noting(small(), share=0.4, cells=3, experts=3, rank=2, coverage=0.0)
        plan = PLAN.model_copy(update={"schedule": "linear"})
        defense.fit(Counting(digits, size=60), attacks(), plan=plan)
        assert [one[0] for one in states] == [False, False, False, True, True]
        assert equal(states[3][1], states[4][1])
        assert not equal(states[1][1], states[2][1])
        experts = [one for task in range(3) for one in defense._adapter(task)]
        assert all(one.requires_grad for one in experts)
        assert any(bool(one.any()) for one in experts[1::2])
        rates = [0.05, 0.05 * 2 / 3, 0.05 / 3, 0.3 * 0.05, 0.3 * 0.025]
        assert [one[2] for one in states] == pytest.approx(rates)

    def test_report(self, divided: ASSL) -> None:
        report = divided.report()
        assert (report["images_embedded"], report["images_used"]) == (60, 24)
        assert 0 <= float(report["space_flips"]) <= 1  # type: ignore[arg-type]
        for name, rows in (("spaces_by_attack", ["clean", "1 fgsm", "2 pgd"]), ("spaces_by_class", None)):
            table = report[name]
            assert isinstance(table, dict)
            assert rows is None or list(table) == rows
            assert all(sum(row.values()) == pytest.approx(1) for row in table.values())

    def test_it_is_rebuilt_from_its_spec(self, divided: ASSL) -> None:
        again = build()
        again.load_spec(divided.spec())
        again.load_state_dict(divided.state_dict())
        (x, _) = points(1)
        assert torch.equal(again.eval()(x), divided.eval()(x))

    @pytest.mark.parametrize("at", [2, 6, 12])
    def test_resuming_is_exact(self, digits: Any, at: int) -> None:
        """Before and after the pool grows, and while experts train."""
        stopped_and_resumed(lambda: build(seed=1), Counting(digits), [attacks()], at=at, plan=PLAN)

    def test_the_best_epoch_may_be_of_the_backbone(self, digits: Any) -> None:
        """Its weights load although the spaces were not found yet."""
        defense, data = build(), Counting(digits)
        defense.fit(data, attacks(), plan=PLAN.model_copy(update={"select": "val-robust"}), validation=data)
        assert defense(points(1)[0]).isfinite().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share": 0.0}, "share=0.0 must be above 0 and at most 1"),
        ({"backbone_share": 1.0}, "backbone_share=1.0 must be above 0 and below 1"),
        ({"experts": 0}, "experts=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0 and finite"),
        ({"need": "hrad"}, "unknown need 'hrad': did you mean 'hard'"),
        ({"select": "bth"}, "unknown select 'bth': did you mean 'both'"),
    ],
)
def test_parameters_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        ASSL(small(), **given)
