"""SIMA: candidates, critic and preference loss by hand; the border of stage 1; resuming; its report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, cross_entropy, equal, points, small, softmax, stopped_and_resumed
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import InputError
from attacks_pool.calling.randomness import PartGenerator, keyed_generator
from defenses import SIMA, Stage, TrainPlan
from defenses.parts.frozen import frozen_copy

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)


def referring(model: nn.Module, **parameters: Any) -> SIMA:
    """A SIMA whose π_ref is another network than its classifier."""
    defense = SIMA(model, **parameters)
    other = frozen_copy(model)
    for parameter in other.parameters():
        parameter.mul_(1.5)
    defense._old = (other,)
    return defense


def data(digits: Any, count: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Two batches of digits."""
    half = count // 2
    x, y = digits.train.x[:count], digits.train.y[:count]
    return [(x[:half], y[:half]), (x[half:], y[half:])]


class TestPreference:
    """L = 1/N Σ 1[pair] · (−log σ(β δ)) + λ · CE."""

    def test_by_hand(self) -> None:
        """δ from log-softmax differences, image by image; the normalisers cancel."""
        draws = torch.Generator().manual_seed(0)
        z, ref = (3 * torch.randn(6, 5, generator=draws, dtype=torch.float64) for _ in range(2))
        y = torch.tensor([0, 1, 2, 3, 4, 0])
        w, u = torch.tensor([0, 1, 2, 3, 4, 1]), torch.tensor([1, 1, 0, 3, 2, 4])
        terms = SIMA(nn.Identity(), beta=0.7, weight=2.0).preference_loss(z, ref, w, u, y)
        total, p, q = 0.0, z.log_softmax(1), ref.log_softmax(1)
        for i in range(6):
            if w[i] != u[i]:
                delta = (p[i, w[i]] - p[i, u[i]]) - (q[i, w[i]] - q[i, u[i]])
                total -= math.log(1 / (1 + math.exp(-0.7 * float(delta))))
        ce = float(F.cross_entropy(z, y))
        assert float(terms["preference"]) == pytest.approx(total / 6, abs=1e-12)
        assert float(terms["loss"]) == pytest.approx(total / 6 + 2 * ce, abs=1e-12)

    def test_a_pair_costs_log_2_where_nothing_has_changed(self, network: Network) -> None:
        """f = π_ref gives δ = 0, whatever the answers and β."""
        z = 4 * torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
        w, u = torch.arange(8), torch.arange(8) + 1
        terms = SIMA(network(), beta=3.0, weight=0.0).preference_loss(z, z, w, u, w)
        assert float(terms["loss"]) == pytest.approx(math.log(2), abs=1e-6)

    def test_logits_may_shift(self, network: Network) -> None:
        """By a constant for each image, on either side."""
        z, ref = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(1)).double()
        w, u = torch.arange(8), torch.arange(8) + 1
        defense = SIMA(network(), weight=0.0)
        shift = torch.arange(8.0)[:, None].double()
        one = defense.preference_loss(z, ref, w, u, w)["loss"]
        for moved in ((z + shift, ref), (z, ref - 3 * shift)):
            assert float(defense.preference_loss(*moved, w, u, w)["loss"]) == pytest.approx(float(one))

    def test_without_ce_two_logits_of_an_image_get_a_gradient(self, network: Network) -> None:
        """Those of the chosen and of the rejected answer, with opposite signs; none without a pair."""
        z = torch.randn(3, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        w, u = torch.tensor([2, 3, 4]), torch.tensor([5, 3, 1])
        SIMA(network(), weight=0.0).preference_loss(z, z.detach(), w, u, w)["loss"].backward()
        assert z.grad is not None
        assert z.grad.nonzero().tolist() == [[0, 2], [0, 5], [2, 1], [2, 4]]
        assert z.grad[0, 2] < 0 < z.grad[0, 5]
        assert float(z.grad[0].sum()) == pytest.approx(0, abs=1e-7)

    def test_without_pairs_ce_is_left(self, network: Network) -> None:
        """w = l for every image."""
        z = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
        y = torch.arange(8)
        terms = SIMA(network(), weight=0.5).preference_loss(z, -z, y, y, y)
        assert float(terms["loss"]) == pytest.approx(0.5 * float(F.cross_entropy(z, y)))


class TestAnswers:
    """C_i = {argmax z_i} ∪ {M − 1 draws}, judged by three criteria."""

    def test_draws_follow_the_tempered_softmax(self) -> None:
        """The first answer is the prediction, the others have the right frequencies."""
        z = torch.tensor([[2.0, 1.0, 0.0, -40.0]])
        defense = SIMA(nn.Identity(), answers=20001, temperature=2.0)
        found = defense.candidates(z)[0]
        assert found[0] == 0
        shares = torch.bincount(found[1:], minlength=4) / 20000
        torch.testing.assert_close(shares, (z[0] / 2).softmax(0), atol=0.015, rtol=0)
        assert shares[3] == 0

    def test_a_share_of_a_batch_draws_the_same(self, network: Network) -> None:
        """As several processes train."""
        defense = SIMA(network())
        z = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
        defense.generator = keyed_generator("sima")
        whole = defense.candidates(z)
        rows = torch.tensor([1, 3, 6])
        defense.generator = PartGenerator.of(keyed_generator("sima"), 8, rows)
        assert torch.equal(defense.candidates(z[rows]), whole[rows])

    def test_criteria(self, network: Network) -> None:
        """o marks the label; t and r are probabilities of π_ref on the image, and on noisy views of it."""
        defense = referring(network(), views=3, sigma=0.2)
        x, y = points(1)
        defense.generator = keyed_generator("sima")
        found = defense.criteria(x, y)
        assert list(found) == ["object", "attribute", "relation"]
        assert torch.equal(found["object"], F.one_hot(y, 10).double())
        reference = torch.tensor(softmax(defense._old[0], x))
        torch.testing.assert_close(found["attribute"], reference.double(), atol=1e-6, rtol=0)
        draws = keyed_generator("sima")
        views = [(x + 0.2 * torch.randn(x.shape, generator=draws)).clamp(0, 1) for _ in range(3)]
        expected = sum(torch.tensor(softmax(defense._old[0], view)).double() for view in views) / 3
        torch.testing.assert_close(found["relation"], expected, atol=1e-6, rtol=0)

    def test_best_and_worst(self, network: Network) -> None:
        """By o + ½ (t + r); without o another answer wins."""
        defense = SIMA(network())
        criteria = {
            "object": torch.tensor([[0.0, 0.0, 1.0, 0.0]]),
            "attribute": torch.tensor([[0.6, 0.1, 0.0, 0.3]]),
            "relation": torch.tensor([[0.2, 0.7, 0.1, 0.0]]),
        }
        candidates = torch.tensor([[3, 2, 0, 0]])
        assert [int(one) for one in defense.judged(candidates, criteria)] == [2, 3]
        assert defense._counts["agreed"] == 0
        del criteria["object"]
        assert [int(one) for one in defense.judged(candidates, criteria)] == [0, 2]
        assert defense._counts["agreed"] == 1
        assert [int(one) for one in defense.judged(torch.tensor([[1, 1, 1, 1]]), criteria)] == [1, 1]

    @pytest.mark.parametrize(
        ("critic", "left"),
        [
            ("no-object", ["attribute", "relation"]),
            ("no-attribute", ["object", "relation"]),
            ("no-relation", ["object", "attribute"]),
        ],
    )
    def test_a_criterion_can_be_left_out(self, network: Network, critic: Any, left: list[str]) -> None:
        assert list(referring(network(), critic=critic).criteria(*points(1))) == left

    def test_without_truth_labels_play_no_part(self, network: Network) -> None:
        """In the scores; with it they do."""
        x, y = points(1)
        for truth in (True, False):
            defense, other = (referring(network(), truth=truth) for _ in range(2))
            found, again = defense.criteria(x, y), other.criteria(x, (y + 1) % 10)
            assert ("object" in found) is truth
            assert equal(found, again) is not truth


class TestStages:
    """π_ref, the border of stage 1, and what is counted."""

    def test_adversarial_training_comes_first(self, network: Network, digits: Any) -> None:
        """Then π_ref is the classifier of that moment; both parts have a whole schedule of learning rates."""
        rates: list[float] = []
        seen: list[tuple[bool, bool, int]] = []

        class Noting(SIMA):
            def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
                before = bool(self._old) and equal(self._old[0], self.model)
                seen.append((bool(self._old), before, len(self.watched.state)))
                rates.append(self.watched.param_groups[0]["lr"])
                return super().loss(x, y, stage)

            def configure_optimizer(self, plan: TrainPlan) -> Any:
                self.watched: Any = super().configure_optimizer(plan)
                return self.watched

        defense = Noting(network())
        history = defense.fit(data(digits), [attack()], plan=PLAN.model_copy(update={"schedule": "linear"}))
        assert [one[0] for one in seen] == [False, False, True, True]
        assert seen[2] == (True, True, 0)
        assert seen[3][1] is False
        assert seen[3][2] > 0
        assert rates == pytest.approx([0.05, 0.025, 0.05, 0.025])
        assert set(history[0]) == {"loss"}
        assert set(history[1]) == {"loss", "preference", "ce"}
        assert defense._old == ()

    def test_later_stages_refer_to_the_stage_before(self, network: Network, digits: Any) -> None:
        defense = SIMA(network())
        defense.fit(data(digits), [attack()], plan=PLAN)
        before = frozen_copy(defense.model)
        olds: list[nn.Module] = []
        defense.fit(data(digits), [attack("pgd")], plan=PLAN, progress=lambda _: olds.append(defense._old[0]))
        assert all(equal(old, before) for old in olds)
        assert not equal(before, defense.model)

    def test_report(self, network: Network, digits: Any) -> None:
        """Shares of images and pairs, over all stages and by stage; preference training alone counts."""
        defense = SIMA(network(), seed=2)
        assert defense.report() == {}
        for name in ("fgsm", "pgd"):
            defense.fit(data(digits), [attack(name)], plan=PLAN)
        found = defense.report()
        table = found.pop("preferences_by_stage")
        assert isinstance(table, dict)
        assert list(table) == ["1", "2"]
        assert set(found) == set(table["2"])
        assert defense._tally.total("images", 1) == 24
        assert defense._tally.total("images", 2) == 48
        shares = {name: value for name, value in found.items() if name != "mean_delta"}
        assert all(0 <= float(value) <= 1 for value in shares.values())  # type: ignore[arg-type]
        assert found["pair_share"] == pytest.approx(
            (table["1"]["pair_share"] + 2 * table["2"]["pair_share"]) / 3
        )

    @pytest.mark.parametrize("at", [2, 3])
    def test_resuming_is_exact(self, digits: Any, at: int) -> None:
        """On both sides of the border; the sums of the report go on."""
        stages = [attacks("fgsm")]
        whole, _, _ = stopped_and_resumed(
            lambda: SIMA(small(), seed=1), data(digits), stages, at=at, plan=PLAN
        )
        assert whole.report()

    def test_resuming_in_a_later_stage(self, digits: Any) -> None:
        stages = [attacks("fgsm"), attacks("pgd")]
        stopped_and_resumed(lambda: SIMA(small(), seed=1), data(digits), stages, at=2, plan=PLAN)


def test_ce_of_the_first_part(network: Network) -> None:
    """Without π_ref the loss is that of adversarial training."""
    defense = SIMA(network())
    x, y = points(1)
    loss = defense.loss(x, y, Stage(1, (attack(),), PLAN))["loss"]
    x_adv = SIMA(network()).craft(attack(), x, y)
    assert loss.item() == pytest.approx(cross_entropy(softmax(defense.model, x_adv), y), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beta": 0.0}, "beta=0.0 must be above 0 and finite"),
        ({"weight": -1.0}, "weight=-1.0 must be at least 0 and finite"),
        ({"answers": 1}, "answers=1 must be at least 2"),
        ({"views": 0}, "views=0 must be at least 1"),
        ({"sft": 1.0}, "sft=1.0 must be above 0 and below 1"),
        ({"critic": "no-objects"}, "unknown critic 'no-objects': did you mean 'no-object'?"),
    ],
)
def test_parameters_are_checked(network: Network, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}".replace("?", r"\?")):
        SIMA(network(), **given)
