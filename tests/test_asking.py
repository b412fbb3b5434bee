"""Models of every type, mode and output are asked alike; what cannot be asked is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench import TakeOutput, evaluate_model, run
from advbench.data import DataSet
from advbench.external import Source, load_foreign
from attacks_pool import Attack, InputError, count_passes, pool, verify
from attacks_pool.verifier import predict_exactly
from defenses import TrainPlan, registry
from leaderboards import comparable

Network = Callable[..., nn.Sequential]
OTHER_TYPES = [torch.float64, torch.float16, torch.bfloat16]
ATTACKS = {"pgd": {"steps": 3}, "fab-t": {"steps": 3}, "square": {"steps": 20}, "ddn": {"steps": 4}}


def crafted(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What the attack finds with a generator of its own."""
    return attack(model, x, y, generator=torch.Generator().manual_seed(0))


def bound(name: str) -> Attack:
    return pool.get(name, budget="digits", **ATTACKS[name])


@pytest.fixture
def points(digits: DataSet) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    return digits.test.x[:6].clone(), digits.test.y[:6].clone()


class Answering(nn.Module):
    """A model whose logits come in some form."""

    def __init__(self, model: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x: Tensor) -> Any:
        """Whatever the form makes of the logits."""
        return self.form(self.model(x))


# Types.


@pytest.mark.parametrize("dtype", OTHER_TYPES)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_meet_models_of_other_types(
    name: str, dtype: torch.dtype, network: Network, points: tuple[Tensor, Tensor]
) -> None:
    """They get images of their own type; of float64 ones the result is that of float32 to rounding."""
    model = network(norm=True).eval()
    other = deepcopy(model).to(dtype)
    x_adv = crafted(bound(name), other, *points)
    assert x_adv.dtype == torch.float32
    if dtype == torch.float64:
        torch.testing.assert_close(x_adv, crafted(bound(name), model, *points), rtol=0, atol=1e-5)
    verdict = verify(other, *points, x_adv, norm=None, eps=0.0)
    expected = other(x_adv.to(dtype)).float().argmax(1) == points[1]
    assert torch.equal(verdict.robust, expected)
    assert not other._forward_hooks
    assert not other._forward_pre_hooks


def test_a_model_of_several_types_gets_what_its_first_layer_takes(points: tuple[Tensor, Tensor]) -> None:
    class Halves(nn.Module):
        def __init__(self, first: torch.dtype, then: torch.dtype) -> None:
            super().__init__()
            self.first = nn.Linear(64, 16).to(first)
            self.then = nn.Linear(16, 10).to(then)

        def forward(self, x: Tensor) -> Tensor:
            return self.then(self.first(x.flatten(1)).relu().to(self.then.weight.dtype))

    for types in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        model = Halves(*types)
        assert crafted(bound("pgd"), model, *points).dtype == torch.float32
        assert predict_exactly(model, points[0]).dtype == torch.float32


def test_a_module_that_converts_images_itself_gets_float32(points: tuple[Tensor, Tensor]) -> None:
    seen = set()

    class Converting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(x.dtype)
            return super().forward(x.flatten(1).to(self.weight.dtype))

    model = Converting(64, 10).double()
    crafted(bound("pgd"), model, *points)
    verify(model, *points, points[0], norm="linf", eps=0.1)
    assert seen == {torch.float32}


@pytest.mark.parametrize("dtype", OTHER_TYPES)
@pytest.mark.slow
def test_models_of_other_types_are_evaluated(dtype: torch.dtype, network: Network, tmp_path: Path) -> None:
    """Also as functions, whose weights nobody sees."""
    model = network().eval()
    given: dict[str, Any] = {"attacks": "fgsm", "points": 20, "surrogate": "none", "runs_dir": tmp_path}
    expected = evaluate_model(model, **given).record.cells
    other = deepcopy(model).to(dtype)
    found = [evaluate_model(one, **given).record for one in (other, lambda x: other(x))]
    assert found[0].cells[0].clean_correct == found[1].cells[0].clean_correct
    for record in found:
        for cell, usual in zip(record.cells, expected, strict=True):
            assert abs(cell.robust - usual.robust) <= (0 if dtype == torch.float64 else 3)
            assert cell.invalid == 0
    assert found[0].cost.multiply_adds > 0


@pytest.mark.parametrize("batch", [None, 4])
def test_a_script_of_another_type_behind_a_normalisation(
    batch: int | None, network: Network, digits: DataSet, tmp_path: Path
) -> None:
    """Also of a baked-in batch size."""
    plain = network().eval()
    body = nn.Sequential(nn.Unflatten(0, (batch, 1)), nn.Flatten(0, 1), plain) if batch else plain
    script = torch.jit.trace(deepcopy(body).bfloat16(), digits.test.x[: batch or 2].bfloat16())
    torch.jit.save(script, tmp_path / "model.pt")
    source = Source(str(tmp_path / "model.pt"), mean=(0.5,), std=(0.25,), trust=True)
    x = digits.test.x[:6]
    found = load_foreign(source, digits).model(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain((x - 0.5) / 0.25), rtol=0.05, atol=0.05)


@pytest.mark.quick(r"(at|air|mid|mola-router)-.*")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", registry.names())
def test_defenses_wrap_models_of_other_types(
    name: str, dtype: torch.dtype, network: Network, points: tuple[Tensor, Tensor]
) -> None:
    if name in ("mid", "mola-router") and dtype == torch.bfloat16:
        with pytest.raises(InputError, match=f"^{name} needs a classifier of float32 weights, not "):
            registry.build(name, network().to(dtype))
        return
    defense = registry.build(name, network().to(dtype))
    attacks = [bound("pgd"), pool.get("fgsm", budget="digits"), pool.get("ddn", budget="digits", steps=2)]
    several = "continual" not in defense.info.regimes
    losses = defense.fit([points], attacks if several else attacks[:1], plan=TrainPlan(epochs=1, lr=1e-3))
    assert all(np.isfinite(value) for value in losses[0].values())
    assert crafted(bound("pgd"), defense, *points).dtype == torch.float32


# Modes.


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.slow
def test_an_evaluation_in_any_mode_gives_the_same_numbers(
    mode: Callable[[], Any], network: Network, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"attacks": "fgsm,apgd-t:steps=3", "points": 20, "runs_dir": tmp_path}
    usual = evaluate_model(network(norm=True), **given).record
    with mode():
        # Made inside as well: its weights are tensors of that mode.
        for model in (network(norm=True), deepcopy(network(norm=True))):
            assert comparable(evaluate_model(model, **given).record) == comparable(usual)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


@pytest.mark.slow
def test_autocast_and_the_default_type_change_no_number(network: Network, tmp_path: Path) -> None:
    given: dict[str, Any] = {"attacks": "fgsm,square:steps=9", "points": 10, "runs_dir": tmp_path}
    usual, model = evaluate_model(network(norm=True), **given).record, network(norm=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert comparable(evaluate_model(model, **given).record) == comparable(usual)
    torch.set_default_dtype(torch.float64)
    try:
        assert comparable(evaluate_model(model, **given).record) == comparable(usual)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_a_run_in_inference_mode_is_the_same(tmp_path: Path, small_options: dict[str, Any]) -> None:
    given = {**small_options, "sequence": "fgsm", "unseen": "none", "points": 10, "resume": False}
    given["runs_dir"] = tmp_path
    usual = run("at", **given)
    with torch.inference_mode():
        other = run("at", **given)
        x, y = other.test_data
        x_adv = crafted(bound("pgd"), other.model, x, y)
    assert comparable(other.record) == comparable(usual.record)
    assert torch.equal(x_adv, crafted(bound("pgd"), usual.model, x, y))


def test_a_defense_made_and_trained_in_inference_mode(
    network: Network, points: tuple[Tensor, Tensor]
) -> None:
    states = []
    for mode in (torch.inference_mode, torch.enable_grad):
        with mode():
            defense = registry.build("at", deepcopy(network()))
            defense.fit([points], [bound("pgd")], plan=TrainPlan(epochs=2))
        states.append(defense.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_weights_of_inference_mode_stay_tied() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
        model[2].weight = model[1].weight
    crafted(bound("pgd"), model, torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert model[2].weight is model[1].weight
    assert not model[1].weight.is_inference()


# Outputs.

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "object": lambda z: SimpleNamespace(logits=z, loss=None),
    "mapping": lambda z: {"features": z[:1], "logits": z},
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_taken_from_what_holds_them(
    form: str, network: Network, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """By attacks, the verifier, evaluation and defenses, which count its passes too."""
    plain, model = network().eval(), Answering(network().eval(), FORMS[form])
    with count_passes(model) as passes:
        x_adv = crafted(bound("pgd"), model, *points)
    assert (passes.forwards, passes.backwards) == (18, 18)
    assert torch.equal(x_adv, crafted(bound("pgd"), plain, *points))
    for first, second in zip(
        *(
            (verify(one, *points, x_adv, norm="linf", eps=0.2).robust, predict_exactly(one, x_adv))
            for one in (plain, model)
        ),
        strict=True,
    ):
        assert torch.equal(first, second)
    given: dict[str, Any] = {"attacks": "fgsm", "points": 20, "surrogate": "none", "runs_dir": tmp_path}
    cells = [evaluate_model(one, **given).record.cells for one in (plain, model)]
    assert [(cell.robust, cell.forwards) for cell in cells[0]] == [
        (cell.robust, cell.forwards) for cell in cells[1]
    ]
    trained = [registry.build("at", one) for one in (network(), Answering(network(), FORMS[form]))]
    for defense in trained:
        defense.fit([points], [bound("pgd")], plan=TrainPlan(epochs=1))
    assert torch.equal(*(defense(points[0]) for defense in trained))


@pytest.mark.parametrize(
    ("form", "said", "key"),
    [
        (
            lambda z: (z, z),
            "gives tuple, expected a tensor of logits: wrap it, such as advbench.Take",
            0,
        ),
        (lambda z: [None, z], "gives list, expected a tensor of logits: wrap it", 1),
        (lambda z: {"out": z}, "gives dict of 'out', expected a tensor of logits: wrap it", "out"),
        (lambda z: SimpleNamespace(scores=z), "gives SimpleNamespace, expected a tensor of logits", "scores"),
    ],
)
def test_other_outputs_name_the_wrapper_which_takes_them(
    form: Callable[[Tensor], Any], said: str, key: int | str, network: Network, points: tuple[Tensor, Tensor]
) -> None:
    model = Answering(network().eval(), form)
    with pytest.raises(InputError) as caught:
        crafted(bound("pgd"), model, *points)
    assert said in str(caught.value)
    assert f"TakeOutput(model, {key!r})" in str(caught.value)
    with pytest.raises(InputError, match="expected a tensor of logits: wrap it"):
        evaluate_model(model, attacks="fgsm", points=20)
    with pytest.raises(InputError, match="expected a tensor of logits: wrap it"):
        registry.build("at", model).fit([points], [bound("pgd")])
    wrapped = crafted(bound("pgd"), TakeOutput(model, key), *points)
    assert torch.equal(wrapped, crafted(bound("pgd"), network().eval(), *points))


@pytest.mark.parametrize(
    ("form", "key"),
    [(lambda z: (z,), 3), (lambda z: {"a": z}, "b"), (lambda z: SimpleNamespace(a=z), "b")],
)
def test_a_wrapper_says_what_is_not_there(form: Callable[[Tensor], Any], key: int | str) -> None:
    with pytest.raises(InputError, match=f"which has no {key!r}$"):
        TakeOutput(Answering(nn.Flatten(), form), key)(torch.zeros(1, 1, 2, 2))


def test_scripts_are_attacked_as_they_are(network: Network, points: tuple[Tensor, Tensor]) -> None:
    """They take no hooks."""
    plain = network().eval()
    script = torch.jit.trace(plain, points[0])
    assert torch.equal(crafted(bound("pgd"), script, *points), crafted(bound("pgd"), plain, *points))


# Images and labels.


def test_rounding_beyond_the_box_is_brought_back(network: Network, points: tuple[Tensor, Tensor]) -> None:
    """Attack and verifier agree on the clean point."""
    (x, y), model = points, network().eval()
    off = torch.where(x == 0, -3e-8, torch.where(x == 1, 1.0000001, x))
    assert off.min() < 0
    assert off.max() > 1
    x_adv = crafted(bound("pgd"), model, off, y)
    assert torch.equal(x_adv, crafted(bound("pgd"), model, x, y))
    assert off.min() < 0
    far = torch.where(x == 0, -1e-6, x)
    verdict = verify(model, far, y, x, norm="linf", eps=0.0)
    assert not verdict.invalid.any()
    registry.build("at", network()).fit([(off, y)], [bound("pgd")], plan=TrainPlan(epochs=1))


X, Y = "x must be float32 (N, C, H, W), not ", "y must be int64 (6,), not "
CONVERTED = "torch.from_numpy converts it to a tensor"
WRONG: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Any, Any]], str]] = {
    "array": (lambda x, y: (x.numpy(), y), f"{X}a numpy array of float32 (6, 1, 8, 8): {CONVERTED}"),
    "doubles array": (
        lambda x, y: (x.double().numpy(), y),
        f"{X}a numpy array of float64 (6, 1, 8, 8): {CONVERTED}",
    ),
    "list": (lambda x, y: ([x], y), f"{X}a list of 1"),
    "nothing": (lambda _x, y: (None, y), f"{X}None"),
    "one image": (lambda x, y: (x[0], y), f"{X}float32 (1, 8, 8): x[None] is a batch of one"),
    "doubles": (lambda x, y: (x.double(), y), f"{X}float64 (6, 1, 8, 8): x.float() is"),
    "bytes": (lambda x, y: ((255 * x).byte(), y), f"{X}uint8 (6, 1, 8, 8): x.float() / 255 is"),
    "beyond": (lambda x, y: (x + 1e-5, y), "x must lie in [0, 1], not in [1e-05, 1.00001]"),
    "below": (lambda x, y: (x - 0.5, y), "x must lie in [0, 1], not in [-0.5, 0.5]"),
    "not numbers": (lambda x, y: (x * torch.nan, y), "x must lie in [0, 1], not in [nan, nan]"),
    "label list": (lambda x, y: (x, y.tolist()), f"{Y}a list of 6: torch.as_tensor converts it to a tensor"),
    "label array": (
        lambda x, y: (x, y.numpy()),
        f"{Y}a numpy array of int64 (6,): torch.as_tensor converts it to a tensor",
    ),
    "one label": (lambda x, _y: (x, 3), f"{Y}an int"),
    "short labels": (lambda x, y: (x, y.int()), f"{Y}int32 (6,): y.long() is"),
    "fewer labels": (lambda x, y: (x, y[:4]), f"{Y}int64 (4,)"),
    "column": (lambda x, y: (x, y[:, None]), f"{Y}int64 (6, 1): y[:, 0] is"),
    "one-hot labels": (lambda x, y: (x, nn.functional.one_hot(y, 10)), f"{Y}int64 (6, 10)"),
    "real labels": (lambda x, y: (x, y.float()), f"{Y}float32 (6,)"),
    "negative labels": (lambda x, y: (x, y * 0 - 100), "y must hold classes from 0 on, not -100"),
    "classes": (
        lambda x, y: (x, torch.full_like(y, 10)),
        "y must hold classes below 10, as the model (Sequential) has, not 10",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_batch_is_described(case: str, network: Network, points: tuple[Tensor, Tensor]) -> None:
    spoil, line = WRONG[case]
    with pytest.raises(InputError) as caught:
        bound("pgd")(network().eval(), *spoil(*points))
    assert str(caught.value) == line


def test_the_verifier_takes_tensors_alone(network: Network, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    with pytest.raises(ValueError, match=r"x must be a torch\.Tensor, not ndarray"):
        verify(network(), x.numpy(), y, x, norm="linf", eps=0.1)
