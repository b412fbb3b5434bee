"""SSEAT: the loss by hand, what the memory chooses and never exceeds, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, cross_entropy, divergence, points, small, softmax, stopped_and_resumed
from torch import Tensor, nn

from attacks_pool import InputError
from attacks_pool.calling.randomness import keyed_generator
from defenses import SSEAT, Stage, TrainPlan
from defenses.methods.sseat import jensen_shannon
from defenses.parts.frozen import frozen_copy
from defenses.parts.memory import Memory, evenly_spaced

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)


def data(digits: Any, count: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Batches of ten digits."""
    return [(digits.train.x[part], digits.train.y[part]) for part in torch.arange(count).split(10)]


def remembering(model: nn.Module, **given: Any) -> tuple[SSEAT, Tensor, Tensor]:
    """A defense in its second stage, whose memory holds as many random images as a batch has."""
    defense = SSEAT(model, **given)
    m, y_m = points(1)
    defense._memory = Memory()
    defense._memory.groups["1 fgsm"] = (m.flip(0), y_m.flip(0))
    old = frozen_copy(model)
    with torch.no_grad():
        for value in old.parameters():
            value += 0.2 * torch.randn(value.shape, generator=keyed_generator("old", value.numel()))
    defense._old = (old,)
    return defense, m.flip(0), y_m.flip(0)


class TestLoss:
    """L = CE(f(x̃), y) + ½·CE(f(m₁), y_m) + λ·JS."""

    def test_jensen_shannon_by_hand(self) -> None:
        """Symmetric, at most log 2, 0 for equal logits, finite for certain ones."""
        draws = torch.Generator().manual_seed(0)
        a, b = torch.randn(5, 4, generator=draws), torch.randn(5, 4, generator=draws)
        p, q = ((one / 2).softmax(1).tolist() for one in (a, b))
        middle = [
            [(u + v) / 2 for u, v in zip(first, second, strict=True)]
            for first, second in zip(p, q, strict=True)
        ]
        expected = (divergence(p, middle) + divergence(q, middle)) / 2
        assert float(jensen_shannon(a, b, 2.0)) == pytest.approx(expected, rel=1e-4)
        assert float(jensen_shannon(b, a, 2.0)) == pytest.approx(expected, rel=1e-4)
        assert float(jensen_shannon(a, a)) == pytest.approx(0, abs=1e-6)
        far = torch.tensor([[1000.0, 0.0]])
        assert float(jensen_shannon(far, far.flip(1))) == pytest.approx(math.log(2))

    def test_terms(self, network: Network) -> None:
        """Two views of each image: f sees the first, f_old the second; only f gets a gradient."""
        defense, m, y_m = remembering(network(), weight=0.7, temperature=2.0)
        x, y = points(1)
        defense.generator = keyed_generator("sseat")
        terms = defense.loss(x, y, Stage(2, (attack(),), PLAN))
        defense.generator = keyed_generator("sseat")
        x_adv = defense.craft(attack(), x, y)
        rows = torch.randperm(12, generator=defense.generator)
        first, second = defense.view_of(m[rows]), defense.view_of(m[rows])
        assert not torch.equal(first, second)
        p, q = softmax(defense._old[0], second, 2.0), softmax(defense.model, first, 2.0)
        middle = [[(u + v) / 2 for u, v in zip(*pair, strict=True)] for pair in zip(p, q, strict=True)]
        js = (divergence(p, middle) + divergence(q, middle)) / 2
        ce = cross_entropy(softmax(defense.model, x_adv), y)
        replay = cross_entropy(softmax(defense.model, first), y_m[rows])
        assert terms["consistency"].item() == pytest.approx(js, rel=1e-3)
        assert terms["loss"].item() == pytest.approx(ce + replay / 2 + 0.7 * js, rel=1e-4)
        terms["loss"].backward()
        assert all(value.grad is None for value in defense._old[0].parameters())

    def test_without_weight_there_is_no_old_model(self, network: Network) -> None:
        defense, *_ = remembering(network(), weight=0.0)
        terms = defense.loss(*points(1), Stage(2, (attack(),), PLAN))
        assert terms["loss"].item() == pytest.approx(terms["ce"].item() + terms["replay"].item() / 2)
        assert defense.passes.forwards == 0

    def test_views(self, network: Network) -> None:
        """Shifted, noisy, and in the image range."""
        defense = SSEAT(network(), sigma=0.0)
        x = torch.zeros(50, 1, 8, 8)
        x[:, :, 3, 3] = 1
        moved = defense.view_of(x)
        assert torch.equal(moved.flatten(1).sum(1), torch.ones(50))
        places = {tuple(one.nonzero()[0].tolist()[1:]) for one in moved}
        assert places == {(row, column) for row in (2, 3, 4) for column in (2, 3, 4)}
        noisy = SSEAT(network(), sigma=0.3).view_of(torch.full((50, 1, 8, 8), 0.5))
        inner = noisy[:, :, 2:-2, 2:-2]
        assert 0.2 < float(inner.std()) < 0.32
        assert (float(noisy.min()), float(noisy.max())) == (0, 1)


class TestMemory:
    """What is kept."""

    def test_evenly_spaced_by_hand(self) -> None:
        """Of every class as many, at equal distances in the order of the score."""
        labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 2])
        score = torch.tensor([0.9, 0.5, 0.1, 0.2, 0.3, 0.8, 0.7, 0.4, 0.5, 0.0, 0.6])
        rows = evenly_spaced(labels, score, 7)
        # Class 2 has one point, and leaves its share to the others. In order, class 0 is 9, 2, 4, 8, 6, 0 and
        # class 1 is 3, 7, 1, 5.
        assert rows.tolist() == [2, 8, 0, 3, 1, 5, 10]
        assert sorted(evenly_spaced(labels, score, 99).tolist()) == list(range(11))
        assert evenly_spaced(labels, score, 0).tolist() == []
        assert len(set(evenly_spaced(labels, score, 9).tolist())) == 9

    def test_uncertainty_is_the_variation_of_answers(
        self, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """1 − the share of the most frequent answer."""
        answers = torch.tensor([[1, 1, 1, 1], [1, 2, 1, 3], [0, 1, 2, 3]])
        turns = iter(answers.T)
        defense = SSEAT(network(), views=4)
        monkeypatch.setattr(
            defense, "forward", lambda x: nn.functional.one_hot(next(turns), 10).float() + 0 * x.sum()
        )
        assert defense.uncertainty(torch.rand(3, 1, 8, 8)).tolist() == [0, 0.5, 0.75]

    @pytest.mark.parametrize("memory", [1, 7, 20])
    def test_it_never_holds_more_than_it_says(self, digits: Any, memory: int) -> None:
        """At no moment of three stages; every group keeps its room, and a tenth is clean."""
        sizes: list[int] = []

        class Watched(SSEAT):
            def _choose(self, *given: Any) -> None:
                super()._choose(*given)
                sizes.append(len(self._memory))

            def _keep(self, *given: Any) -> None:
                super()._keep(*given)
                sizes.append(len(self._memory))

        defense = Watched(small(), memory=memory, views=3)
        for name in ("fgsm", "pgd", "fgsm"):
            defense.fit(data(digits), [attack(name)], plan=PLAN.model_copy(update={"epochs": 1}))
            assert defense.held == len(defense._memory) <= memory
            assert defense.spec()["memory"] == defense.held == memory
        # While earlier groups shrink, the sum goes down before a new group comes.
        assert max(sizes) <= memory
        if memory == 20:
            found = {name: len(labels) for name, (_, labels) in defense._memory.groups.items()}
            assert found == {"clean": 2, "1 fgsm": 6, "2 pgd": 6, "3 fgsm": 6}
            table = defense.report()["memory_by_attack"]
            assert isinstance(table, dict)
            assert {name: row["images"] for name, row in table.items()} == found

    def test_stored_images_are_attacked_ones_with_their_labels(self, digits: Any) -> None:
        """Within the budget of a clean image of the data, and not crafted again later."""
        defense = SSEAT(small(), memory=20, views=3)
        batches = data(digits)
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        defense.fit(batches, [attack()], plan=PLAN)
        images, labels = defense._memory.groups["1 fgsm"]
        away = (images[:, None] - x[None]).flatten(2).abs().amax(2)
        nearest = away.argmin(1)
        assert float(away.amin(1).max()) <= 0.2 + 1e-6
        assert float(away.amin(1).min()) > 0.1
        assert torch.equal(y[nearest], labels)
        clean, truth = defense._memory.groups["clean"]
        same = (clean[:, None] == x[None]).flatten(2).all(2)
        assert torch.equal(y[same.int().argmax(1)], truth)
        defense.fit(batches, [attack("pgd")], plan=PLAN)
        again, _ = defense._memory.groups["1 fgsm"]
        assert all(any(torch.equal(one, other) for other in images) for one in again)


def test_stage_1_is_adversarial_training(network: Network) -> None:
    x, y = points(1)
    terms = SSEAT(network()).loss(x, y, Stage(1, (attack(),), PLAN))
    x_adv = SSEAT(network()).craft(attack(), x, y)
    assert terms["loss"].item() == pytest.approx(cross_entropy(softmax(network(), x_adv), y), rel=1e-4)


def test_resuming_is_exact(digits: Any) -> None:
    """In the middle of the second stage, whose end fills the memory again."""
    stages = [attacks("pgd"), attacks("fgsm")]
    stopped_and_resumed(
        lambda: SSEAT(small(), memory=12, views=2, seed=1), data(digits, 30), stages, at=4, plan=PLAN
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"memory": 0}, "memory=0 must be at least 1"),
        ({"views": 1}, "views=1 must be at least 2"),
        ({"clean_share": 1.0}, "clean_share=1.0 must be at least 0 and below 1"),
        ({"weight": -1.0}, "weight=-1.0 must be at least 0 and finite"),
        ({"sigma": -0.1}, "sigma=-0.1 must be at least 0 and finite"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0 and finite"),
    ],
)
def test_parameters_are_checked(network: Network, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        SSEAT(network(), **given)
