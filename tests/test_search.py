"""The faster form of a model that searches run on: the same function, or none at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from targets import Target
from torch import Tensor, nn

from advbench.data import DataSet, Split
from advbench.evaluation.evaluate import evaluate
from attacks_pool import ModelState, pool
from attacks_pool.fast import copy as search
from attacks_pool.fast.copy import SearchModel, fold, pool_first, search_model
from attacks_pool.losses import margin
from attacks_pool.search.ascent import fooled, input_gradient


class Branches(nn.Module):
    """A convolution whose result has two readers, one of them a batch norm; and a plain pair."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        z = torch.relu(self.norm(z) + z)
        logits: Tensor = self.head(self.norm2(self.second(z)).flatten(1))
        return logits


class Shy(Branches):
    """Cannot be traced: its control flow depends on the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) >= 0 else super().forward(-x)


class Dice(Branches):
    """Answers at random."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.rand_like(x))


class Uncopied(Branches):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: Any) -> Uncopied:
        raise RuntimeError("there is only one of me")


@pytest.fixture
def x() -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is worth bfloat16, on every processor: autocast works without the instructions too."""
    monkeypatch.setattr(search, "WORTHWHILE", 0)
    monkeypatch.setattr(search, "has_bfloat16", lambda _device: True)


def made(kind: type[nn.Module]) -> nn.Module:
    """With batch-norm statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind()
        model.train()(torch.rand(32, 1, 8, 8) * 2)
    return model.eval()


def test_folding_keeps_the_function_and_leaves_shared_results_alone(x: Tensor) -> None:
    model = made(Branches)
    with torch.no_grad():
        before = model(x)
        folded = fold(model)
        torch.testing.assert_close(folded(x), before, rtol=1e-4, atol=1e-5)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert isinstance(folded.norm2, nn.Identity)


@pytest.mark.parametrize("kind", [Branches, Shy])
def test_a_search_model_says_what_the_model_says_and_leaves_it_untouched(
    kind: type[nn.Module], x: Tensor
) -> None:
    model = made(kind).train()
    state = ModelState(model)
    found = search_model(model, x, reduced=False)
    assert isinstance(found, SearchModel)
    assert state.changes() == []
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Dice, Uncopied])
def test_what_cannot_be_copied_faithfully_is_searched_itself(kind: type[nn.Module], x: Tensor) -> None:
    model = made(kind)
    assert search_model(model, x, reduced=True) is model


@pytest.mark.usefixtures("reduced")
def test_a_model_that_bfloat16_distorts_is_searched_itself(
    x: Tensor, network: Callable[..., nn.Module]
) -> None:
    class Fine(Branches):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head((self.first(x) * 1e4).frac().flatten(1).repeat(1, 1)[:, :256])
            return logits

    assert isinstance(search_model(network().eval(), x, reduced=True), SearchModel)
    fine = made(Fine)
    assert search_model(fine, x, reduced=True) is fine


def test_small_models_without_batch_norm_are_searched_themselves(
    x: Tensor, network: Callable[..., nn.Module]
) -> None:
    model = network().eval()
    assert search_model(model, x, reduced=True) is model


def test_a_point_is_believed_fooled_only_if_the_model_itself_is(x: Tensor) -> None:
    model = made(Branches)
    with torch.no_grad():
        y = model(x).argmax(1)

    class Liar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -model(x)

    lying = SearchModel(model, Liar())
    with torch.no_grad():
        assert not fooled(lying, x, y, lying(x)).any()
        assert fooled(Liar(), x, y, lying(x)).all()


def test_portions_do_not_change_what_it_says(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search_model(made(Branches), x, reduced=False)
    with torch.no_grad():
        whole = found(x.repeat(4, 1, 1, 1))
        monkeypatch.setattr(search, "CACHED", 64 * 20)
        torch.testing.assert_close(found(x.repeat(4, 1, 1, 1)), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("reduced")
@pytest.mark.parametrize(
    "text", ["pgd:steps=20", "apgd-ce:steps=20", "square:steps=100", "mim", "apgd-t:steps=10"]
)
def test_bfloat16_searches_find_as_much_and_every_success_holds(
    text: str, digits: DataSet, robust_digits: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = robust_digits.model
    data = Split(digits.test.x[:100], digits.test.y[:100])
    attack = pool.sequence(text, budget="digits")[0]

    def robust() -> int:
        row = evaluate(lambda _: model, data, [(attack, 100)], stage=0, seed=0)
        assert row.cells[1].invalid == 0
        return row.cells[1].robust

    fast = robust()
    monkeypatch.setattr(search, "has_bfloat16", lambda _device: False)
    assert abs(fast - robust()) <= 3


class Pooled(nn.Module):
    """ReLUs before pooling: read by it alone, by a sum too, used twice, and with places asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.second, self.relu2, self.pool2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.again, self.pool3 = nn.ReLU(), nn.MaxPool2d(3, 1, 1)
        self.relu4, self.pool4 = nn.ReLU(), nn.MaxPool2d(2, return_indices=True)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pool(self.relu(self.first(x)))
        z = self.relu2(self.second(z))
        z = self.pool2(z) + z[..., ::2, ::2]
        z = self.again(self.pool3(self.again(z - 0.1)))
        z, _ = self.pool4(self.relu4(z - 0.1))
        logits: Tensor = self.head(z.flatten(1))
        return logits


def test_pooling_comes_first_only_where_nobody_can_tell(x: Tensor) -> None:
    model = made(Pooled)
    y = torch.arange(16) % 10
    logits, (gradient, _, _) = model(x), input_gradient(model, x, y, margin)
    moved = pool_first(made(Pooled))
    assert isinstance(moved.relu, nn.MaxPool2d)
    assert isinstance(moved.pool, nn.ReLU)
    for name in ("relu2", "again", "relu4"):
        assert isinstance(getattr(moved, name), nn.ReLU)
    assert torch.equal(moved(x), logits)
    assert torch.equal(input_gradient(moved, x, y, margin)[0], gradient)


def test_layers_with_hooks_keep_their_places(x: Tensor) -> None:
    """A hook may change what a layer gives, and sees what it did before."""
    model = made(Pooled)
    model.relu.register_forward_hook(lambda _module, _inputs, output: output + x.mean())
    logits = model(x)
    assert isinstance(pool_first(model).relu, nn.ReLU)
    assert torch.equal(model(x), logits)
    model = made(Branches)
    model.norm2.register_forward_pre_hook(lambda _module, inputs: (inputs[0].abs(),))
    assert torch.equal(fold(model)(x), model(x))
    assert isinstance(model.norm2, nn.BatchNorm2d)
