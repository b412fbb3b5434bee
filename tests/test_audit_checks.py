"""The audit's checks one by one: fresh copies, slopes, consistency, planted points, competence, memory."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from advbench.audit import Fresh
from advbench.audit.battery import again, ladder
from advbench.audit.competence import competence_flags, learned
from advbench.audit.consistency import asked_points, consistency_flags
from advbench.audit.memorisation import held_out, memorisation_flags
from advbench.audit.planted import Planted, plant, planted_flags
from advbench.audit.slope import slope_flags
from advbench.data import DataSet
from attacks_pool import pool
from leaderboards.audits.comparisons import Probed, cliff, made_again

CPU = torch.device("cpu")
GLOBAL = {"asked": 0}


def counted() -> float:
    """How many calls any module that counts has answered."""
    GLOBAL["asked"] += 1
    return float(GLOBAL["asked"])


def misfed(model: Callable[[Tensor], Tensor], change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A model that gets other images than it is asked about."""
    return Answering(lambda x: model(change(x)))


class Answering(nn.Module):
    """What a function says of images."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.answer(x)


def changed(model: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """A model, and what its answers become by ``change(logits, images)``."""
    return Answering(lambda x: change(model(x), x))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the copy shares globals with the original")
def test_a_fresh_copy_knows_nothing_of_what_is_asked_later() -> None:
    """Not even through a global; its own questions it counts."""
    model = Answering(lambda x: torch.full((len(x), 10), counted()))
    GLOBAL["asked"] = 7
    with Fresh(lambda _: model, [], CPU) as fresh:
        for _ in range(5):
            model(torch.zeros(1, 1, 8, 8))
        for expected in (8.0, 9.0):
            found = fresh.logits(None, torch.zeros(2, 1, 8, 8), 0)
            assert found is not None
            assert torch.equal(found, torch.full((2, 10), expected))
        assert GLOBAL["asked"] == 12
    assert not multiprocessing.active_children()


def test_a_fresh_copy_says_what_the_model_says_and_nothing_where_it_fails(
    plain: nn.Module, digits: DataSet
) -> None:
    """Equal logits; None for a network that it does not have, for a model that fails, and once closed."""
    x = digits.test.x[:8]
    fresh = Fresh(lambda _: plain, [], CPU)
    found = fresh.logits(None, x, 0)
    assert found is not None
    torch.testing.assert_close(found, plain(x).detach())
    assert fresh.logits("pgd", x, 0) is None
    assert fresh.logits(None, x[:, :, :4], 0) is None
    fresh.close()
    fresh.close()
    assert fresh.logits(None, x, 0) is None


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        pytest.param(lambda z, _: 30 * z, True, id="scaled"),
        pytest.param(
            lambda z, _: z - z.detach() + 5 * one_hot(z.argmax(1), 10), False, id="straight-through"
        ),
        pytest.param(lambda z, _: z + (z - z.detach()), False, id="doubled"),
    ],
)
def test_a_gradient_is_the_slope_of_the_answers(
    plain: nn.Module, digits: DataSet, change: Callable[[Tensor, Tensor], Tensor], agrees: bool
) -> None:
    """Twice the gradient is not the slope either; a factor of the logits changes both."""
    x, y = digits.test.x[:60], digits.test.y[:60]
    flags = list(slope_flags(changed(plain, change), x, y, 0.2, 0))
    assert [flag.code for flag in flags] == ([] if agrees else ["false-gradient"])
    if flags:
        assert flags[0].evidence["points"] == 60
        assert flags[0].evidence["agree"] < 6


def asked(plain: nn.Module, digits: DataSet) -> Tensor:
    """What a model is asked."""
    attack = pool.get("pgd", eps=0.2, steps=3)
    points = asked_points(digits.test.x[:40], digits.test.y[:40], [(plain, attack)], 0.2, 0)
    assert points.shape == (120, 1, 8, 8)
    assert torch.equal(points[80:], digits.test.x[:40])
    return points


@pytest.mark.parametrize(
    ("change", "way"),
    [
        pytest.param(lambda z, _: z, None, id="honest"),
        pytest.param(lambda z, _: z - z.mean(0), "company", id="company"),
        pytest.param(lambda z, x: z + (len(x) > 64), "size", id="large"),
        pytest.param(lambda z, x: z + (len(x) == 1), "size", id="alone"),
        pytest.param(lambda z, _: z + torch.is_grad_enabled(), "gradients", id="grad-mode"),
        pytest.param(lambda z, x: z + x.requires_grad, "gradients", id="requires-grad"),
        pytest.param(lambda z, _: z + torch.arange(len(z))[:, None] / len(z), "order", id="order"),
    ],
)
def test_an_answer_depends_on_the_image_alone(
    plain: nn.Module, digits: DataSet, change: Callable[[Tensor, Tensor], Tensor], way: str | None
) -> None:
    """Each other influence is named."""
    points = asked(plain, digits)
    flags = list(consistency_flags(changed(plain, change), points, 0, stochastic=False))
    assert [flag.code for flag in flags] == ([] if way is None else ["batch-dependent"])
    if flags:
        assert way in flags[0].evidence["relative_difference"]


def test_what_was_asked_before_is_found_by_the_fresh_copy(plain: nn.Module, digits: DataSet) -> None:
    """A model whose answers grow with its calls, after a hundred of them."""
    model, points = changed(plain, lambda z, _: z + (counted() > 100)), asked(plain, digits)
    GLOBAL["asked"] = 0
    with Fresh(lambda _: model, [], CPU) as fresh:
        for _ in range(101):
            model(points[:1])
        (flag,) = consistency_flags(model, points, 0, stochastic=False, fresh=fresh)
    assert set(flag.evidence["relative_difference"]) == {"history"}


def test_planted_points_are_there_and_are_found(plain: nn.Module, digits: DataSet) -> None:
    """Centres are of class 0; PGD finds what was planted, and nothing where its gradient is turned round."""
    x = digits.test.x[:16]
    for norm, eps in (("linf", 0.2), ("l2", 1.0)):
        tasks = plant(plain, x, norm=norm, eps=eps, seed=0)
        assert tasks is not None
        assert len(tasks.x) >= 12
        assert (Planted(plain, tasks)(tasks.x).argmax(1) == 0).all()
    attacks = [pool.get("pgd", eps=0.2, steps=20), pool.get("square", eps=0.2)]
    assert list(planted_flags(plain, x, attacks, points=200, seed=0)) == []

    def backwards(images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images * 1
            images.register_hook(torch.neg)
        return images

    (flag,) = planted_flags(misfed(plain, backwards), x, attacks, points=200, seed=0)
    assert flag.code == "planted-not-found"
    # Random search would find them, and is not asked where there are gradients to follow.
    assert flag.evidence["attacks"] == [attacks[0].text]
    assert flag.evidence["found"] < 0.6 * flag.evidence["planted"]


def test_nothing_can_be_planted_where_logits_do_not_vary(digits: DataSet) -> None:
    """A constant model has no task to solve."""
    constant = Answering(lambda x: torch.zeros(len(x), 10))
    assert plant(constant, digits.test.x[:8], norm="linf", eps=0.2, seed=0) is None


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        pytest.param(lambda x: 255 * x, "check-normalisation", "images × 0.00392", id="bytes"),
        pytest.param(lambda x: x / 255, "check-normalisation", "images × 255", id="too-small"),
        pytest.param(lambda x: 1 - x, "check-normalisation", "images × -1 + 1", id="inverted"),
        pytest.param(
            lambda x: (x - 0.5) / 0.01, "check-normalisation", "images × 0.01 + 0.5", id="normalised"
        ),
        pytest.param(lambda x: 0 * x, "did-not-train", "100 % of predictions are class", id="constant"),
    ],
)
def test_a_model_that_learned_nothing_is_told_where_to_look(
    digits: DataSet, change: Callable[[Tensor], Tensor], code: str, words: str
) -> None:
    """By trying what explains it."""
    x, y = digits.test.x, digits.test.y
    weight = torch.stack([digits.train.x[digits.train.y == label].mean(0).flatten() for label in range(10)])
    # The nearest mean image decides; out of range everything is equally far.
    model = misfed(lambda x: -torch.cdist(x.flatten(1), weight).clamp_max(5.0), change)
    (flag,) = competence_flags(model, x, y, int((model(x).argmax(1) == y).sum()), 0)
    assert flag.code == code
    assert words in flag.message


def test_classes_in_another_order_are_recognised(plain: nn.Module, digits: DataSet) -> None:
    """Right on none, and on nearly all after renaming."""
    model = changed(plain, lambda z, _: z.roll(3, 1))
    right = int((model(digits.test.x).argmax(1) == digits.test.y).sum())
    (flag,) = competence_flags(model, digits.test.x, digits.test.y, right, 0)
    assert flag.code == "check-normalisation"
    assert flag.evidence["explained_by"] == "class order"


def test_what_counts_as_learned() -> None:
    """More than the commonest class, by a tenth of what is left, and not by luck unless points are few."""
    y = torch.arange(10).repeat(10)
    assert [learned(right, y) for right in (0, 10, 18, 19, 30)] == [False, False, False, True, True]
    assert learned(3, torch.tensor([0, 1, 2, 0]))
    assert learned(0, torch.tensor([], dtype=torch.int64))


def test_points_held_out_are_no_test_points_and_as_many_as_there_are(digits: DataSet) -> None:
    """144 to validate, filled up to 200 from training."""
    found = held_out(digits)
    assert found is not None
    assert len(found) == 200
    assert torch.equal(found.x[:144], digits.validation.x)
    assert torch.equal(found.y[144:], digits.train.y[:56])
    assert held_out(replace(digits, name="folder:photos")) is None


def outcomes(right: int, total: int) -> np.ndarray:
    """(total,) of which the first are right."""
    return np.arange(total) < right


@pytest.mark.parametrize(
    ("counts", "flagged"),
    [((100, 90, 100, 88), 0), ((100, 90, 100, 50), 1), ((100, 60, 85, 55), 1), ((85, 40, 100, 80), 0)],
)
def test_better_on_measured_points(counts: tuple[int, ...], flagged: int) -> None:
    """Clean or attacked, here and there; being worse on them says nothing."""
    flags = memorisation_flags(*(outcomes(right, 100) for right in counts), pool.get("pgd", eps=0.2))
    assert [flag.code for flag in flags] == ["better-on-measured-points"] * flagged


def rung(eps: float, right: int, *, probe: bool = True, **knobs: int) -> Probed:
    """PGD at eps, which leaves so many of 200 points."""
    return Probed(pool.get("pgd", eps=eps, **knobs), outcomes(right, 200), 200, "white-box", probe=probe)


@pytest.mark.parametrize(
    ("below", "at", "above", "flagged"),
    [
        pytest.param(136, 126, 112, 0, id="even"),
        pytest.param(196, 192, 64, 1, id="edge"),
        pytest.param(150, 120, 78, 0, id="steep"),
        pytest.param(192, 188, 160, 0, id="small"),
    ],
)
def test_a_cliff_is_an_edge_at_the_budget(below: int, at: int, above: int, flagged: int) -> None:
    """An even fall is none, however steep; nor is a small one."""
    rungs = [rung(0.19, below), rung(0.2, at), rung(0.21, above)]
    assert [flag.code for flag in cliff(rungs, 0.2)] == ["cliff"] * flagged
    assert list(cliff(rungs[1:], 0.2)) == []


def test_an_attack_made_again_must_give_the_same() -> None:
    """Less by far is a sign of state; other attacks are not compared."""
    before = rung(0.2, 150, probe=False)
    assert [flag.code for flag in made_again([before, rung(0.2, 40)])] == ["batch-dependent"]
    assert list(made_again([before, rung(0.2, 147)])) == []
    assert list(made_again([before, rung(0.2, 40, steps=7)])) == []


def test_the_cheapest_iterative_attack_is_made_again() -> None:
    """Neither a single step nor a query attack; none where all are dear."""

    def chosen(text: str) -> list[str]:
        return [attack.name for attack in again(pool.sequence(text, budget="digits"))]

    assert chosen("fgsm,pgd:steps=20,bim:steps=10,square") == ["bim"]
    assert chosen("fgsm,square") == []
    assert chosen("pgd:steps=5000") == []


def test_the_ladder_is_tight_around_the_budget() -> None:
    """And ends with the whole box."""
    assert ladder(0.2) == pytest.approx([0.1, 0.19, 0.2, 0.21, 1.0])
    assert ladder(0.6) == pytest.approx([0.3, 0.57, 0.6, 0.63, 1.0])
