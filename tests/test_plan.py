"""The training budget: schedules by hand, warm-up, text forms, optimizers, augmentation."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from defenses import TrainPlan
from defenses.training.augment import augment, shift


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0: 0.4, 0.25: 0.4, 0.5: 0.4, 0.999: 0.4}),
        # cos(π/3) = 1/2 and cos(π/2) = 0; cos(0.999π) = −0.99999507.
        ("cosine", {0: 0.4, 1 / 3: 0.3, 0.5: 0.2, 2 / 3: 0.1, 0.999: 9.87e-7}),
        ("linear", {0: 0.4, 0.25: 0.3, 0.5: 0.2, 0.999: 0.0004}),
        ("step", {0: 0.4, 0.499: 0.4, 0.5: 0.04, 0.749: 0.04, 0.75: 0.004, 0.999: 0.004}),
        # Up to 40 %: 0.4·0.2/0.4; down from there: 0.4·0.5/0.6. It starts at a fortieth, not at 0.
        ("one-cycle", {0: 0.01, 0.01: 0.01, 0.2: 0.2, 0.4: 0.4, 0.5: 1 / 3, 0.7: 0.2, 0.999: 0.0004 / 0.6}),
    ],
)
def test_schedules_by_hand(schedule: Any, values: dict[float, float]) -> None:
    """The learning rate at the start, on the way, and near the end; anywhere positive and at most ``lr``."""
    plan = TrainPlan(schedule=schedule, lr=0.4)
    for done, rate in values.items():
        assert plan.learning_rate(done) == pytest.approx(rate, rel=1e-3), done
    rates = [plan.learning_rate(step / 1000) for step in range(1000)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.4)


def test_warm_up_is_linear() -> None:
    """The share of eps: nothing at first (a thousandth), half after half of it, then all."""
    plan = TrainPlan(eps_warmup=4)
    shares = {0: 0.001, 0.002: 0.001, 1: 0.25, 2: 0.5, 3.5: 0.875, 4: 1, 7: 1}
    assert {done: plan.warmth(done) for done in shares} == pytest.approx(shares)
    assert TrainPlan(eps_warmup=0).warmth(0) == 1
    # It ends before its stage; else no epoch would ever meet the whole budget.
    assert TrainPlan(epochs=3, eps_warmup=3).eps_warmup == 3
    with pytest.raises(ValidationError, match=r"eps_warmup=3\.5 is longer than the 3 epochs of the stage"):
        TrainPlan(epochs=3, eps_warmup=3.5)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ("crop+flip", ("crop", "flip")),
        ("flip, crop", ("flip", "crop")),
        ("none", ()),
        ("", ()),
        (["flip"], ("flip",)),
        ((), ()),
    ],
)
def test_augmentation_from_text(given: Any, kinds: tuple[str, ...]) -> None:
    """As the command line writes it, and as a record holds it."""
    assert TrainPlan(augmentation=given).augmentation == kinds


def test_numbers_from_text_and_through_json() -> None:
    """The command line gives text; a record gives back an equal plan, which is frozen."""
    assert TrainPlan.model_validate({"max_grad_norm": "none"}).max_grad_norm is None
    assert TrainPlan.model_validate({"max_grad_norm": "2.5"}).max_grad_norm == 2.5
    plan = TrainPlan.model_validate({"epochs": "3", "lr": "1e-2", "momentum": "0", "eps_warmup": "1.5"})
    assert (plan.epochs, plan.lr, plan.momentum, plan.eps_warmup) == (3, 0.01, 0.0, 1.5)
    assert TrainPlan.model_validate(plan.model_dump(mode="json")) == plan
    assert TrainPlan.model_validate_json(plan.model_dump_json()) == plan
    with pytest.raises(ValidationError):
        plan.epochs = 4


WRONG: dict[str, list[Any]] = {
    "epoch": [3],
    "epochs": [0, 1.5, 10**20],
    "batch_size": [1, 10**10],
    "optimizer": ["lbfgs"],
    "lr": [0, -0.1, "inf"],
    "max_grad_norm": [0, "inf"],
    "momentum": [1, -0.1],
    "weight_decay": [-1],
    "schedule": ["cos"],
    "eps_warmup": [-1, "nan"],
    "augmentation": ["rotate", "crop+rotate"],
    "mixed_precision": ["fp8"],
    "select": ["best"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG for value in WRONG[key]])
def test_what_is_no_plan_is_refused(key: str, value: Any) -> None:
    """Unknown keys and values out of range; the fault names the key."""
    with pytest.raises(ValidationError) as caught:
        TrainPlan.model_validate({key: value})
    assert caught.value.errors()[0]["loc"][0] == key


def test_optimizers() -> None:
    """Each with the plan's rate and decay; momentum is SGD's."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for name, kind in kinds.items():
        plan = TrainPlan.model_validate({"optimizer": name, "lr": 0.3, "momentum": 0.7, "weight_decay": 0.2})
        optimizer = plan.make_optimizer([nn.Parameter(torch.ones(1))])
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)
        assert name != "sgd" or group["momentum"] == 0.7


def moved(image: Tensor, most: int) -> Tensor:
    """All shifts of a (C, H, W) image by up to ``most``, pixel by pixel, zeros moving in."""
    channels, height, width = image.shape
    shifts = list(product(range(-most, most + 1), repeat=2))
    result = torch.zeros(len(shifts), *image.shape)
    for number, (down, right) in enumerate(shifts):
        for c, i, j in product(range(channels), range(height), range(width)):
            if 0 <= i - down < height and 0 <= j - right < width:
                result[number, c, i, j] = image[c, i - down, j - right]
    return result


@pytest.mark.parametrize(("shape", "most"), [((1, 8, 8), 1), ((3, 5, 7), 2), ((1, 5, 4), 3)])
def test_shift_against_a_slow_loop(shape: tuple[int, int, int], most: int) -> None:
    """Every image is one of its own (2m + 1)² shifted ones, and all of these come up about as often."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, *shape, generator=draws) + 0.1
    candidates = torch.stack([moved(image, most) for image in images])
    count = 30 * candidates.shape[1]
    shifted = shift(images.repeat(count, 1, 1, 1), most, draws).view(count, 2, 1, *shape)
    # Two shifts that leave one pixel each could look alike, but not with random images.
    same = (shifted == candidates).flatten(3).all(3)
    assert (same.sum(2) == 1).all()
    often = same.sum((0, 1))
    assert often.min() > 25
    assert often.max() < 105


def test_flip_mirrors_half_of_the_images() -> None:
    """Left to right; the others stay as they are."""
    draws = torch.Generator().manual_seed(2)
    x = torch.rand(1000, 3, 4, 4, generator=draws)
    flipped = augment(x, ("flip",), draws)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    kept = (flipped == x).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 430 < int(mirrored.sum()) < 570


def test_crop_shifts_by_an_eighth_of_the_image() -> None:
    """Up to 1 pixel at 8, 4 at 32, and at least 1."""
    for width, most in ((8, 1), (32, 4), (4, 1)):
        x = torch.zeros(2000, 1, width, width)
        x[:, :, width // 2, width // 2] = 1
        places = augment(x, ("crop",), torch.Generator().manual_seed(0)).flatten(1).argmax(1)
        for place in (places // width, places % width):
            assert {int(at) - width // 2 for at in place.unique()} == set(range(-most, most + 1))


def test_augmentation_draws_from_its_generator_alone(global_randomness: Any) -> None:
    """Equal generators give equal images; nothing global moves; without kinds nothing happens."""
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, two, other = (
        augment(x, ("crop", "flip"), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert augment(x, (), torch.Generator()) is x
    assert global_randomness()
