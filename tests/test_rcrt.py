"""RCRT: regularisers by hand, the choice among known attacks, stages, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, cross_entropy, mean, points, small, softmax, stopped_and_resumed
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import InputError
from attacks_pool.calling.randomness import keyed_generator
from defenses import RCRT, Stage, TrainPlan

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)


def stage(*met: Any, index: int = 1, done: float = 0.0) -> Stage:
    """A moment of a stage."""
    return Stage(index, met or (attack(),), PLAN, (), done)


def distances(model: nn.Module, x: Tensor, moved: Tensor) -> list[float]:
    """‖f(moved_i) − f(x_i)‖₂, image by image."""
    found = []
    with torch.no_grad():
        for one, other in zip(x, moved, strict=True):
            change = (model(other[None]) - model(one[None]))[0]
            found.append(math.sqrt(sum(float(value) ** 2 for value in change)))
    return found


def data(digits: Any) -> list[tuple[Tensor, Tensor]]:
    """Three batches of digits."""
    return [(digits.train.x[part], digits.train.y[part]) for part in torch.arange(30).split(10)]


class TestLoss:
    """L = CE(f(x̃), y) + λ · R."""

    def test_alr(self, network: Network) -> None:
        """The mean distance of f(x̃) from f(x), not its square; both sides get a gradient."""
        defense = RCRT(network(), weight=0.7)
        x, y = points(1)
        terms = defense.loss(x, y, stage())
        x_adv = RCRT(network()).craft(attack(), x, y)
        ce = cross_entropy(softmax(defense.model, x_adv), y)
        reg = mean(distances(defense.model, x, x_adv))
        assert terms["regulariser"].item() == pytest.approx(reg, abs=1e-5)
        assert terms["loss"].item() == pytest.approx(ce + 0.7 * reg, abs=1e-5)
        logits = defense.model(x_adv).requires_grad_()
        defense.distance(x, y, logits.detach().requires_grad_(), (attack(),)).sum().backward()
        assert all(
            one.grad is not None and one.grad.any() for one in defense.model.parameters() if one.dim() > 1
        )

    def test_ur(self, network: Network) -> None:
        """Noise of the l2 length σ·√(d/3072), which the image range cuts; x̃ plays no part in R."""
        defense = RCRT(network(), regularise="ur", sigma=3.0)
        x, y = points(1)
        defense.generator = keyed_generator("rcrt")
        noisy = defense.noisy(x)
        u = 2 * torch.rand(x.shape, generator=keyed_generator("rcrt")) - 1
        for i in range(len(x)):
            length = math.sqrt(sum(float(value) ** 2 for value in u[i].flatten()))
            shorter = u[i] * min(1.0, 3 * math.sqrt(64 / 3072) / length)
            torch.testing.assert_close(noisy[i], (x[i] + shorter).clamp(0, 1))
        defense.generator = keyed_generator("rcrt")
        found = defense.distance(x, y, torch.zeros(12, 10), (attack(),))
        assert found.tolist() == pytest.approx(distances(defense.model, x, noisy), abs=1e-5)

    def test_short_noise_is_not_lengthened(self, network: Network) -> None:
        defense = RCRT(network(), sigma=1000.0)
        x = torch.full((4, 1, 8, 8), 0.5)
        defense.generator = keyed_generator("rcrt")
        u = 2 * torch.rand(x.shape, generator=keyed_generator("rcrt")) - 1
        torch.testing.assert_close(defense.noisy(x), (x + u).clamp(0, 1))

    def test_a_search_of_its_own_moves_the_logits_further(self, network: Network) -> None:
        """Within the ball; attacks without one use x̃."""
        defense = RCRT(network(), alr_steps=5)
        x, y = points(1)
        pgd = attack("pgd")
        found = defense.furthest(pgd, x, y)
        assert float((found - x).abs().max()) <= pgd.eps + 1e-6
        searched = mean(distances(defense.model, x, found))
        assert searched > 1.2 * mean(distances(defense.model, x, defense.craft(pgd, x, y)))
        turn = attack("rotation-translation")
        logits = defense(x).detach() + 1
        expected = torch.full((12,), math.sqrt(10))
        torch.testing.assert_close(defense.distance(x, y, logits, (turn,)).detach(), expected)

    def test_several_points_of_an_image(self, network: Network) -> None:
        """Each is compared with its own clean image."""
        defense = RCRT(network(), known="average", weight=1.0)
        x, y = points(1)
        terms = defense.loss(x, y, stage(attack(), attack("fgsm", eps=0.05)))
        crafted = [RCRT(network()).craft(one, x, y) for one in (attack(), attack("fgsm", eps=0.05))]
        expected = mean([one for x_adv in crafted for one in distances(defense.model, x, x_adv)])
        assert terms["regulariser"].item() == pytest.approx(expected, abs=1e-5)
        assert defense._counts["regularised"] == 24

    @pytest.mark.parametrize(
        ("during", "expected"),
        [("always", [True, True]), ("initial", [True, False]), ("tuning", [False, True])],
    )
    def test_when_it_regularises(self, network: Network, during: Any, expected: list[bool]) -> None:
        x, y = points(1)
        found = [
            "regulariser" in RCRT(network(), during=during).loss(x, y, stage(index=index)) for index in (1, 2)
        ]
        assert found == expected

    @pytest.mark.parametrize("given", [{"weight": 0.0}, {"regularise": "none"}])
    def test_without_regulariser_it_is_adversarial_training(self, network: Network, given: Any) -> None:
        x, y = points(1)
        terms = RCRT(network(), **given).loss(x, y, stage())
        x_adv = RCRT(network()).craft(attack(), x, y)
        assert terms["loss"].item() == pytest.approx(F.cross_entropy(network()(x_adv), y).item(), abs=1e-6)


class TestKnownAttacks:
    """Which attacks a batch meets."""

    def test_weak_spots_are_attacked_more_often(self, network: Network) -> None:
        """In proportion to 1 − robust accuracy, once all attacks have been shown in this epoch."""
        defense = RCRT(network())
        defense._shown, defense._right = [10.0, 20.0, 10.0], [9.0, 8.0, 10.0]
        draws = torch.tensor([defense.chosen(3, 1) for _ in range(2000)])
        shares = torch.bincount(draws, minlength=3) / 2000
        torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.0]) / 0.7, atol=0.04, rtol=0)
        for shown, right in (([10.0, 0.0], [9.0, 0.0]), ([10.0, 10.0], [10.0, 10.0])):
            defense._shown, defense._right = shown, right
            draws = torch.tensor([defense.chosen(2, 1) for _ in range(1000)])
            assert 400 < int(draws.sum()) < 600

    def test_other_uses(self, network: Network) -> None:
        """The newest alone, any, or all."""
        assert {RCRT(network(), known="newest").chosen(3, 1) for _ in range(9)} == {2}
        defense = RCRT(network(), known="newest")
        assert {defense.chosen(4, 2) for _ in range(50)} == {2, 3}
        assert RCRT(network(), known="max").chosen(3, 1) is None
        defense = RCRT(network(), known="random")
        defense._shown, defense._right = [1.0, 1.0], [1.0, 0.0]
        assert {defense.chosen(2, 1) for _ in range(50)} == {0, 1}

    def test_accuracies_are_those_of_the_epoch(self, network: Network, digits: Any) -> None:
        """They start anew with each; attacks of earlier stages stay known, with their training knobs."""
        seen: list[tuple[list[str], float]] = []

        class Noting(RCRT):
            def chosen(self, count: int, new: int) -> int | None:
                names = [one.text for one in self._met]
                seen.append((names, sum(self._shown)))
                return super().chosen(count, new)

        defense = Noting(network())
        defense.fit(data(digits), [attack("pgd")], plan=PLAN)
        defense.fit(data(digits), [attack()], plan=PLAN)
        assert [shown for _, shown in seen] == [0, 10, 20, 0, 10, 20] * 2
        assert seen[0][0] == []
        assert seen[-1][0] == [attack("pgd").text]
        report = defense.report()
        uses = report["attacks_by_stage"]
        assert isinstance(uses, dict)
        assert uses["1"] == {"1 pgd": 1.0, "2 fgsm": 0.0} or uses["1"] == {"1 pgd": 1.0}
        assert sum(uses["2"].values()) == pytest.approx(1)
        assert float(report["logit_distance"]) > 0  # type: ignore[arg-type]

    def test_fine_tuning_has_a_rate_of_its_own(self, network: Network, digits: Any) -> None:
        rates: list[float] = []

        class Noting(RCRT):
            def configure_optimizer(self, plan: TrainPlan) -> Any:
                self.optimizer: Any = super().configure_optimizer(plan)
                return self.optimizer

            def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
                rates.append(self.optimizer.param_groups[0]["lr"])
                return super().loss(x, y, stage)

        defense = Noting(network(), rate=0.1)
        plan = PLAN.model_copy(update={"schedule": "linear", "epochs": 1})
        for name in ("pgd", "fgsm"):
            defense.fit(data(digits)[:2], [attack(name)], plan=plan)
        assert rates == pytest.approx([0.05, 0.025, 0.005, 0.0025])

    def test_resuming_is_exact(self, digits: Any) -> None:
        """In the middle of an epoch of the second stage."""
        stages = [attacks("pgd"), attacks("fgsm")]
        stopped_and_resumed(lambda: RCRT(small(), seed=1), data(digits), stages, at=4, plan=PLAN)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": -0.1}, "weight=-0.1 must be at least 0 and finite"),
        ({"sigma": 0.0}, "sigma=0.0 must be above 0 and finite"),
        ({"alr_steps": -1}, "alr_steps=-1 must be at least 0 and finite"),
        ({"regularise": "alrr"}, "unknown regulariser 'alrr': did you mean 'alr'"),
        ({"during": "tune"}, "unknown time to regularise 'tune': did you mean 'tuning'"),
        ({"known": "newst"}, "unknown use of known attacks 'newst': did you mean 'newest'"),
    ],
)
def test_parameters_are_checked(network: Network, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        RCRT(network(), **given)
