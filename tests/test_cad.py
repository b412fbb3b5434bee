"""CAD: scores and losses by hand, what later stages read, keep and change, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, equal, points, small, state_of, stopped_and_resumed
from torch import Tensor, nn

from attacks_pool import InputError
from attacks_pool.calling.randomness import keyed_generator
from defenses import CAD, Stage, TrainPlan, registry
from defenses.parts.encoding import encode
from defenses.parts.memory import of_each_class
from defenses.parts.pool import keys_of

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)


class Counting:
    """Batches of digits that count the images that are read."""

    def __init__(self, digits: Any, count: int = 100, size: int = 20) -> None:
        self.x, self.y, self.size = digits.train.x[:count], digits.train.y[:count], size
        self.reads, self.epochs = 0, [-1]

    def __len__(self) -> int:
        return len(self.y) // self.size

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.x.split(self.size), self.y.split(self.size), strict=True):
            self.reads += len(x)
            yield x, y


def cosines(features: list[float], rows: Tensor, scale: float) -> list[float]:
    """τ·cos of a feature vector with each row."""

    def length(vector: list[float]) -> float:
        return math.sqrt(sum(value * value for value in vector))

    return [
        scale * sum(a * b for a, b in zip(features, row, strict=True)) / (length(features) * length(row))
        for row in rows.tolist()
    ]


def cross_entropy(scores: list[float], label: int) -> float:
    """−log softmax of one sample."""
    return math.log(sum(math.exp(one) for one in scores)) - scores[label]


@pytest.fixture(scope="module")
def grown(digits: Any) -> CAD:
    """After stages against FGSM and PGD."""
    defense = CAD(small(), shots=2, seed=1)
    for name in ("fgsm", "pgd"):
        defense.fit(Counting(digits), [attack(name)], plan=PLAN)
    return defense


class TestStage1:
    """Encoder and first rows."""

    def test_loss_by_hand(self, network: Network) -> None:
        """CE of scaled cosines with the rows, which start as the weights of the linear layer."""
        defense = CAD(network(), scale=5.0)
        x, y = points(1)
        plan = PLAN.model_copy(update={"epochs": 1})
        stage = Stage(1, (attack(),), plan, [(x, y)])
        defense.begin(stage)
        linear = [module for module in network().modules() if isinstance(module, nn.Linear)][-1]
        assert torch.equal(defense.rows[0], linear.weight)
        terms = defense.loss(x, y, stage)
        x_adv = CAD.craft(defense, attack(), x, y)
        with torch.no_grad():
            features = encode(defense.model, defense._head, x_adv)[0].tolist()
        expected = [
            cross_entropy(cosines(one, defense.rows[0], 5.0), int(label))
            for one, label in zip(features, y, strict=True)
        ]
        assert terms["loss"].item() == pytest.approx(sum(expected) / 12, rel=1e-4)

    def test_rows_become_prototypes(self, digits: Any) -> None:
        """The means of h(x̃), and r² their mean variance within classes; loaders are shuffled as ever."""
        data = Counting(digits)
        defense = CAD(small(), craft_on="target")
        defense.fit(data, [attack()], plan=PLAN)
        x_adv = defense.crafted(attack(), data.x, data.y)
        with torch.no_grad():
            features = defense.features(x_adv)
        squares = []
        for label in range(10):
            mine = features[data.y == label]
            torch.testing.assert_close(defense.rows[0][label].detach(), mine.mean(0), atol=1e-4, rtol=1e-4)
            squares.append((mine - mine.mean(0)).square())
        assert defense._radius == pytest.approx(float(torch.cat(squares).mean().sqrt()), rel=1e-3)
        assert data.epochs[1:] == [2, 0, 1, 2]

    def test_where_it_crafts(self, digits: Any) -> None:
        """On the classifier before stage 1, in every stage, or on f."""
        defense = CAD(small(), craft_on="target")
        defense.fit(Counting(digits, 40), [attack()], plan=PLAN)
        assert equal(defense._target[0], small())
        x, y = digits.train.x[:20], digits.train.y[:20]
        expected = attack()(small().eval(), x, y)
        assert torch.equal(defense.crafted(attack(), x, y), expected)
        other = CAD(small())
        other.fit(Counting(digits, 40), [attack()], plan=PLAN)
        assert not torch.equal(other.crafted(attack(), x, y), expected)
        assert torch.equal(other.crafted(attack(), x, y), attack()(other, x, y))


class TestLaterStages:
    """Few examples, new rows, prototypes of earlier attacks."""

    def test_logits_are_the_largest_scores_among_attacks(self, grown: CAD, digits: Any) -> None:
        """So that the prediction is the row of largest score among all, as in the authors' code."""
        x = digits.test.x[:30]
        with torch.no_grad():
            scores, logits = grown.scores(grown.features(x)), grown(x)
        assert scores.shape == (30, 20)
        assert torch.equal(logits.argmax(1), scores.argmax(1) % 10)
        by_hand = cosines(grown.features(x)[0].tolist(), torch.cat(list(grown.rows)), 16.0)
        assert scores[0].tolist() == pytest.approx(by_hand, abs=1e-3)
        assert logits[0].tolist() == pytest.approx(
            torch.tensor(by_hand).view(2, 10).amax(0).tolist(), abs=1e-3
        )

    def test_loss_by_hand(self, grown: CAD, digits: Any) -> None:
        """CE among the rows of both attacks, and of noisy prototypes of the first."""
        x, y = digits.test.x[:8], digits.test.y[:8]
        grown.weight, grown.generator = 0.7, keyed_generator("cad")
        terms = grown.loss(x, y, Stage(2, (attack(),), PLAN))
        draws = keyed_generator("cad")
        chosen = torch.randint(10, (8,), generator=draws)
        noise = torch.randn(8, 96, generator=draws)
        rows = torch.cat(list(grown.rows))
        features = grown.features(x).tolist()
        ce = [
            cross_entropy(cosines(one, rows, 16.0), int(k) + 10) for one, k in zip(features, y, strict=True)
        ]
        near = (grown._prototypes[0][chosen] + grown._radius * noise).tolist()
        kept = [cross_entropy(cosines(one, rows, 16.0), int(k)) for one, k in zip(near, chosen, strict=True)]
        assert grown._radius > 0
        assert terms["ce"].item() == pytest.approx(sum(ce) / 8, rel=1e-3)
        assert terms["prototypes"].item() == pytest.approx(sum(kept) / 8, rel=1e-3)
        assert terms["loss"].item() == pytest.approx(sum(ce) / 8 + 0.7 * sum(kept) / 8, rel=1e-3)

    def test_only_new_rows_change(self, digits: Any) -> None:
        """The encoder, its batch norm and the rows of earlier attacks stay, bit for bit."""
        defense = CAD(small(), shots=3)
        defense.fit(Counting(digits), [attack()], plan=PLAN)
        before = state_of(defense)
        defense.fit(Counting(digits), [attack("pgd")], plan=PLAN)
        after = state_of(defense)
        assert equal({name: after[name] for name in before}, before)
        assert set(after) - set(before) == {"rows.1"}
        assert not torch.allclose(defense.rows[1].detach().cpu(), defense._prototypes[1])

    @pytest.mark.parametrize("shots", [1, 4])
    def test_it_never_keeps_more_than_it_says(self, digits: Any, shots: int) -> None:
        """n images of each class, after one pass over the data; nothing but prototypes between stages."""
        data = Counting(digits)
        defense = CAD(small(), shots=shots)
        defense.fit(data, [attack()], plan=PLAN)
        data.reads = 0
        seen: list[tuple[int, int]] = []
        trained: set[bytes] = set()

        def watch(_: Any) -> None:
            assert defense._batches is not None
            assert defense._batches.x is not None
            trained.update(keys_of(defense._batches.x))
            seen.append((len(defense._batches.x), data.reads))

        defense.fit(data, [attack("pgd")], plan=PLAN, progress=watch)
        least = torch.bincount(data.y).clamp_max(shots).sum()
        assert set(seen) == {(int(least), 100)}
        assert len(seen) == 2 * len(data)
        assert len(trained) == int(least) == defense.report()["examples"]
        assert defense._batches is None
        state = defense.training_state()
        assert state["pool"] is None
        assert [tuple(one.shape) for one in state["prototypes"]] == [(10, 96)] * 2

    def test_a_sample_of_each_class(self) -> None:
        """The lowest keys, in the order of the points; the same however they are divided."""
        labels, keys = torch.tensor([0, 1, 0, 1, 0, 2]), torch.tensor([0.3, 0.1, 0.2, 0.6, 0.9, 0.5])
        assert of_each_class(labels, keys, 2).tolist() == [0, 1, 2, 3, 5]
        assert of_each_class(labels, keys, 1).tolist() == [1, 2, 5]

    def test_saved_and_loaded(self, grown: CAD, digits: Any) -> None:
        again = registry.build("cad", small(), parameters=grown.spec()["parameters"])
        again.load_spec(grown.spec())
        again.load_state_dict(state_of(grown))
        x = digits.test.x[:10]
        assert torch.equal(again.eval()(x), grown(x))


@pytest.mark.parametrize("craft_on", ["defense", "target"])
def test_resuming_is_exact(digits: Any, craft_on: Any) -> None:
    """In the middle of the second stage, whose examples are not crafted again."""
    data = list(Counting(digits, 60))
    stages = [attacks("pgd"), attacks("fgsm")]
    stopped_and_resumed(
        lambda: CAD(small(), shots=2, craft_on=craft_on, seed=1), data, stages, at=4, plan=PLAN
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shots": 0}, "shots=0 must be at least 1"),
        ({"scale": 0.0}, "scale=0.0 must be above 0 and finite"),
        ({"weight": -1.0}, "weight=-1.0 must be at least 0 and finite"),
        ({"craft_on": "traget"}, "unknown craft_on 'traget': did you mean 'target'"),
    ],
)
def test_parameters_are_checked(network: Network, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        CAD(network(), **given)
    with pytest.raises(InputError, match=r"^cad splits a classifier at its last nn\.Linear"):
        CAD(nn.Sequential(nn.Flatten()))
