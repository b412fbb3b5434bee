"""What the audit hears while searches run, and what it asks about images that are in no data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.audit.memorisation import composed, composed_flags, withstands
from advbench.audit.watching import Watched, told_to_the_judge, watched_flags
from advbench.data import DataSet, Split
from attacks_pool import pool

CPU = torch.device("cpu")
PGD = pool.get("pgd", eps=0.2, steps=6, loss="margin")
SEED = 12345


class Lying(nn.Module):
    """A model, with something before and after it that knows the number of the call."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor, int], Tensor] = lambda x, _: x,
        after: Callable[[Tensor, int], Tensor] = lambda z, _: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after, self.calls = model, before, after, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        self.calls += x.requires_grad
        return self.after(self.model(self.before(x, self.calls)), self.calls)


def lying_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Changes the gradient that passes here at every third call."""

    def hooked(x: Tensor, call: int) -> Tensor:
        if x.requires_grad and call % 3 == 0:
            x = x * 1
            x.register_hook(change)
        return x

    return hooked


def on_the_stack(function: str) -> bool:
    """Whether a function of this name is being called."""
    return any(frame.function == function for frame in inspect.stack(0))


def heard(model: nn.Module, digits: DataSet) -> list[str]:
    """Codes of flags after one search."""
    watched = Watched(model, 0, CPU)
    with watched.listening():
        PGD(model, digits.test.x[:40], digits.test.y[:40])
    assert len(watched.calls) >= PGD.knobs["steps"]
    return [flag.code for flag in watched_flags(watched)]


def unchanged(x: Tensor, _call: int) -> Tensor:
    """What stands before or after a model that does nothing there."""
    return x


HONEST: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "plain": (unchanged, unchanged),
    "large": (unchanged, lambda z, _: 1000 * z),
    "confident": (unchanged, lambda z, _: torch.log_softmax(30 * z, 1)),
    "clamping": (lambda x, _: x.clamp(0, 1), unchanged),
    "infinite-slopes-at-the-wall": (lambda x, _: x.sqrt(), unchanged),
    "rounding": (unchanged, lambda z, _: z.bfloat16().float()),
}


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_model_tells_a_search_what_it_tells_the_judge(
    plain: nn.Module, digits: DataSet, case: str
) -> None:
    """Whatever is before and after it."""
    assert heard(Lying(plain, *HONEST[case]), digits) == []


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "backwards": torch.neg,
    "noise": torch.randn_like,
    "zero": torch.zeros_like,
    "no-number": lambda g: g * torch.nan,
    "infinite": lambda g: g.sign() * torch.inf,
    "tiny": lambda g: g * 1e-44,
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_gradient_that_lies_at_some_calls_is_heard(plain: nn.Module, digits: DataSet, case: str) -> None:
    """One call in three is enough."""
    assert heard(Lying(plain, lying_gradient(CHANGES[case])), digits) == ["false-gradient"]


def test_a_model_that_turns_the_loss_round_is_heard(plain: nn.Module, digits: DataSet) -> None:
    """Its own hook on its output runs after that of the watch."""
    assert heard(Lying(plain, after=lying_gradient(torch.neg)), digits) == ["false-gradient"]


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(lambda: on_the_stack("gradient_ascent"), id="searched"),
        pytest.param(lambda: not on_the_stack("verify"), id="not-judged"),
        pytest.param(lambda: torch.initial_seed() != SEED, id="seeded"),
    ],
)
def test_a_model_that_knows_its_caller_is_heard(
    plain: nn.Module, digits: DataSet, asked: Callable[[], bool]
) -> None:
    """It tells the judge something else, by the call stack or by the random state."""
    lying = Lying(plain, after=lambda z, _: z.roll(1, 1) if asked() else z)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        assert heard(lying, digits)[0] == "batch-dependent"


def test_watching_changes_no_answer_and_leaves_no_hook(plain: nn.Module, digits: DataSet) -> None:
    """The same points are crafted, to the bit."""
    x, y = digits.test.x[:20], digits.test.y[:20]
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    alone = PGD(plain, x, y, generator=draws[0])
    watched = Watched(plain, 0, CPU)
    with watched.listening():
        assert torch.equal(PGD(plain, x, y, generator=draws[1]), alone)
    assert not plain._forward_hooks
    assert torch.equal(told_to_the_judge(plain, x), plain(x).detach())


def test_a_new_image_is_half_of_each_of_two_of_its_class(digits: DataSet) -> None:
    """The upper half of its own, the lower half of another; a lone image of a class has no partner."""
    new, places = composed(digits.test, 0, 20)
    assert len(new) == 20
    assert torch.equal(new.x[:, :, :4], digits.test.x[places][:, :, :4])
    assert torch.equal(new.y, digits.test.y[places])
    below = digits.test.x[:, :, 4:]
    for image, label, place in zip(new.x, new.y, places, strict=True):
        same = (below == image[:, 4:]).flatten(1).all(1) & (digits.test.y == label)
        assert set(same.nonzero().flatten().tolist()) - {int(place)}
    few = Split(digits.test.x[:3], torch.tensor([0, 1, 0]))
    assert composed(few, 0)[1].tolist() == [0, 2]
    assert not len(composed(Split(few.x, torch.arange(3)), 0)[0])


def test_what_withstands_a_walk_to_other_classes(plain: nn.Module, digits: DataSet) -> None:
    """All that is right at no distance, nothing where the walk arrives."""
    data = Split(digits.test.x[:50], digits.test.y[:50])
    right = (plain(data.x).argmax(1) == data.y).numpy()
    for norm, far in (("linf", 1.0), ("l2", 100.0)):
        assert np.array_equal(withstands(plain, data, data, norm, 0.0, 0), right)
        assert withstands(plain, data, data, norm, far, 0).mean() < 0.1


def outcomes(right: int) -> np.ndarray:
    """(50,) of which the first are right."""
    return np.arange(50) < right


@pytest.mark.parametrize(
    ("counts", "flagged"),
    [
        pytest.param((50, 40, 50, 36), False, id="alike"),
        pytest.param((50, 40, 50, 20), True, id="robust"),
        pytest.param((50, 20, 50, 40), False, id="better"),
        pytest.param((34, 30, 26, 24), False, id="harder"),
        pytest.param((50, 40, 50, 28), False, id="near"),
        pytest.param((50, 40, 20, 16), True, id="clean"),
        pytest.param((20, 20, 20, 0), False, id="few"),
    ],
)
def test_worse_on_new_images(counts: tuple[int, int, int, int], flagged: bool) -> None:
    """Clean or attacked, by far and on enough points; being better on them says nothing."""
    flags = list(composed_flags(*(outcomes(count) for count in counts), PGD.text))
    assert [flag.code for flag in flags] == ["worse-on-new-images"] * flagged
