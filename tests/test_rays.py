"""RayS: near the closed-form optimum, blind to all but the predicted class, and about as strong as Square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from targets import Cast, Target, linear
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool import count_passes, pool, verify
from attacks_pool.attacks.rays import blocks, rays
from attacks_pool.calling.randomness import PartGenerator, keyed_generator
from attacks_pool.fast.copy import SearchModel

EPS = 0.2
POINTS = 60
Wrapper = Callable[[Tensor], Tensor]


class Rewritten(nn.Module):
    """A model whose logits (N, K) a function replaces."""

    def __init__(self, model: nn.Module, rewrite: Wrapper) -> None:
        super().__init__()
        self.model, self.rewrite = model, rewrite

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.rewrite(self.model(x))


@pytest.fixture
def target(plain_digits: Target) -> Target:
    return plain_digits.first(POINTS)


def survivors(model: nn.Module, x: Tensor, y: Tensor, name: str, **knobs: Any) -> int:
    """How many points stay right after the attack at :data:`EPS`."""
    x_adv = pool.get(name, eps=EPS, **knobs)(model, x, y, generator=keyed_generator(0), early_stop=True)
    verdict = verify(model, x, y, x_adv, norm="linf", eps=EPS)
    assert not verdict.invalid.any()
    return int(verdict.robust.sum())


@pytest.mark.parametrize("size", [2, 7, 16])
def test_finds_the_nearest_boundary_of_a_linear_model(size: int) -> None:
    """The best direction is −sign(w), its length |logit gap| / ‖w‖₁."""
    case = linear(2, (1, 1, size), points=32)
    model, x, y, least = case.model, case.x, case.y, case.distances("linf")
    x_adv = pool.get("rays", eps=0.4, steps=1000)(model, x, y, generator=keyed_generator(0))
    assert (model(x_adv).argmax(1) != y).all()
    found = (x_adv - x).abs().flatten(1).amax(1)
    # 1e-5 is how finely distances are measured.
    assert (found >= least - 1e-6).all()
    assert (found <= 1.1 * least + 2e-5).all()


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda logits: F.one_hot(logits.argmax(1), 10).float(),
        lambda logits: 1e4 * logits,
        lambda logits: (logits / 50).softmax(1),
    ],
    ids=["labels", "scaled", "softmax"],
)
@pytest.mark.parametrize("early_stop", [False, True])
def test_only_the_predicted_class_counts(target: Target, rewrite: Wrapper, early_stop: bool) -> None:
    model, x, y = target
    attack = pool.get("rays", eps=EPS, steps=250)
    usual, other = (
        attack(asked, x, y, generator=keyed_generator(0), early_stop=early_stop)
        for asked in (model, Rewritten(model, rewrite))
    )
    assert torch.equal(usual, other)
    assert not torch.equal(usual, x)


def test_no_point_gets_more_queries_than_steps(target: Target) -> None:
    """Each point alone, where queries are its own."""
    model, x, y = target
    for point in range(5):
        one = slice(point, point + 1)
        with count_passes(model) as passes:
            pool.get("rays", eps=0.01, steps=77)(model, x[one], y[one], early_stop=True)
        assert passes.forwards == 77


def test_is_nearly_as_strong_as_square(target: Target) -> None:
    left = {name: survivors(*target, name, steps=600) for name in ("rays", "square")}
    assert left["rays"] <= left["square"] + POINTS // 10
    assert survivors(*target, "gaussian-noise") > left["square"] + POINTS // 2


def test_early_stop_fools_the_same_points(target: Target) -> None:
    """Without it the fooling perturbations only get smaller; a point that survives ends in the same place."""
    model, x, y = target
    attack = pool.get("rays", eps=0.1, steps=300)
    early, late = (
        attack(model, x, y, generator=keyed_generator(0), early_stop=stop) for stop in (True, False)
    )
    fooled = model(early).argmax(1) != y
    assert torch.equal(fooled, model(late).argmax(1) != y)
    assert 0 < int(fooled.sum()) < len(x)
    assert torch.equal(early[~fooled], late[~fooled])
    sizes = [(x_adv - x).abs().flatten(1).amax(1)[fooled] for x_adv in (early, late)]
    assert (sizes[1] <= sizes[0]).all()
    assert float(sizes[1].mean()) < 0.9 * float(sizes[0].mean())


def test_a_point_that_is_wrong_from_the_start_stays(target: Target) -> None:
    model, x, y = target
    with count_passes(model) as passes:
        x_adv = pool.get("rays", eps=EPS, steps=50)(model, x, (y + 1) % 10)
    assert torch.equal(x_adv, x)
    assert passes.forwards == len(x)


def test_draws_of_a_point_do_not_depend_on_the_others(target: Target) -> None:
    """A point whose blocks are used up starts again from random signs: its own, whichever points are left."""
    model, x, y = target
    # In float64, since float32's rounding depends on the batch.
    network = Cast(model)

    def crafted(rows: Tensor, generator: torch.Generator) -> Tensor:
        return rays(network, x[rows], y[rows], eps=0.1, steps=600, generator=generator, early_stop=True)

    everyone, some = torch.arange(len(x)), torch.arange(3, len(x), 2)
    whole = crafted(everyone, keyed_generator(0))
    part = crafted(some, PartGenerator.of(keyed_generator(0), len(x), some))
    assert torch.equal(part, whole[some])
    assert not torch.equal(crafted(everyone, keyed_generator(1)), whole)
    assert not torch.equal(crafted(some, keyed_generator(0)), whole[some])


def test_success_is_confirmed_by_the_exact_model(target: Target) -> None:
    """A search model that sees success everywhere ends no search."""
    model, x, y = target
    liar = Rewritten(model, lambda logits: logits.roll(1, 1))
    search = SearchModel(model, liar, torch.float32)
    x_adv = pool.get("rays", eps=EPS, steps=300)(search, x, y, early_stop=True)
    fooled = model(x_adv).argmax(1) != y
    assert fooled.float().mean() > 0.5


@pytest.mark.parametrize("size", [1, 2, 5, 64, 3072])
def test_every_level_of_blocks_covers_the_image(size: int) -> None:
    first, end = blocks(size).tolist()
    assert (first[0], end[0]) == (0, 0)
    starts = [place for place, at in enumerate(first) if place and at == 0]
    for level, begin in enumerate(starts):
        stop = [*starts, len(first)][level + 1]
        assert end[stop - 1] == size
        assert first[begin + 1 : stop] == end[begin : stop - 1]
        assert stop - begin <= 2**level
    assert [e - f for f, e in zip(first[starts[-1] :], end[starts[-1] :], strict=True)] == [1] * size
