"""Augmentation recipes: against torchvision's own, by hand, and drawn for each image alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from attacks_pool.calling.randomness import PartGenerator, drawn
from defenses import TrainPlan
from defenses.training import operations as do
from defenses.training import policies
from defenses.training.augment import NAMES, augment
from defenses.training.recipes import ATTEMPTS, RECIPES, crop_boxes, crop_shift, cutout, erasing, resized_crop

NEAREST = {"interpolation": v2.InterpolationMode.NEAREST, "fill": [0.0]}


def seeded(seed: int = 0) -> torch.Generator:
    """A new generator."""
    return torch.Generator().manual_seed(seed)


def images(count: int, *shape: int, seed: int = 1) -> Tensor:
    """Random images whose values are whole 255ths, as decoded ones are."""
    return torch.randint(0, 256, (count, *shape), generator=seeded(seed)).float() / 255


def affine(x: Tensor, shear: list[float], center: list[float] | None = None) -> Tensor:
    """torchvision's shear."""
    result: Tensor = vision.affine(x, 0.0, [0, 0], 1.0, shear, center=center, **NEAREST)
    return result


def degrees(slope: float) -> float:
    """The angle of a slope."""
    return math.degrees(math.atan(slope))


OPERATIONS: dict[str, tuple[do.Operation, Callable[[Tensor, float], Tensor], list[float]]] = {
    "brightness": (do.brightness, vision.adjust_brightness, [0.1, 1.0, 1.9]),
    "contrast": (do.contrast, vision.adjust_contrast, [0.1, 1.0, 1.9]),
    "saturation": (do.saturation, vision.adjust_saturation, [0.1, 1.0, 1.9]),
    "sharpness": (do.sharpness, vision.adjust_sharpness, [0.1, 1.0, 1.9]),
    "posterize": (
        do.posterize,
        lambda x, bits: vision.posterize((x * 255).byte(), int(bits)) / 255,
        [2, 5, 8],
    ),
    "solarize": (do.solarize, vision.solarize, [0.0, 0.4, 1.0]),
    "autocontrast": (do.autocontrast, lambda x, _: vision.autocontrast(x), [0, 0, 0]),
    "equalize": (do.equalize, lambda x, _: vision.equalize((x * 255).byte()) / 255, [0, 0, 0]),
    "rotate": (do.rotate, lambda x, angle: vision.rotate(x, angle, **NEAREST), [-88.0, 7.0, 131.0]),
    "shear-x": (do.shear_x, lambda x, s: affine(x, [degrees(s), 0.0], [0, 0]), [-0.9, 0.3, 0.05]),
    "shear-y": (do.shear_y, lambda x, s: affine(x, [0.0, degrees(s)], [0, 0]), [-0.9, 0.3, 0.05]),
    "centred shear-x": (do.centred_shear_x, lambda x, s: affine(x, [degrees(s), 0.0]), [-0.9, 0.3, 0.1]),
    "centred shear-y": (do.centred_shear_y, lambda x, s: affine(x, [0.0, degrees(s)]), [-0.9, 0.3, 0.1]),
    "translate-x": (
        do.translate_x,
        lambda x, by: vision.affine(x, 0.0, [int(by), 0], 1.0, [0.0], **NEAREST),
        [-3.9, 2.0, 40.0],
    ),
    "translate-y": (
        do.translate_y,
        lambda x, by: vision.affine(x, 0.0, [0, int(by)], 1.0, [0.0], **NEAREST),
        [-3.9, 2.0, 40.0],
    ),
}


@pytest.mark.parametrize("shape", [(3, 12, 9), (1, 8, 8)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_against_torchvision(name: str, shape: tuple[int, int, int]) -> None:
    """Each image with its own strength, as torchvision changes it alone; ties of nearest pixels may
    differ.
    """
    ours, theirs, strengths = OPERATIONS[name]
    x = images(3, *shape)
    found = ours(x, torch.tensor(strengths))
    expected = torch.stack([theirs(image, strength) for image, strength in zip(x, strengths, strict=True)])
    same = (found - expected).abs() < 1e-5
    assert same.float().mean() > 0.97
    assert name in ("rotate",) or "shear" in name or bool(same.all())
    assert found.shape == x.shape


@pytest.mark.parametrize(
    ("kind", "choices", "side"),
    [(v2.TrivialAugmentWide, policies.trivial_choices, 32), (v2.RandAugment, policies.rand_choices, 48)],
)
def test_policies_have_torchvision_s_operations(kind: Any, choices: Any, side: int) -> None:
    """The same ones in the same order, with the same 31 strengths and signs."""
    bins, space = policies.BINS, kind._AUGMENTATION_SPACE
    found = choices(side)
    assert [name.replace("-", "") for name in found] == [
        {"identity": "unchanged", "color": "saturation"}.get(name.lower(), name.lower()) for name in space
    ]
    for choice, (strengths, signed) in zip(found.values(), space.values(), strict=True):
        assert choice.signed == signed
        theirs = strengths(bins, side, side)
        if theirs is not None:
            share = torch.arange(bins) / (bins - 1)
            torch.testing.assert_close(choice.of(share), theirs.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["trivial-augment", "rand-augment"])
def test_policies_draw_as_torchvision_does(name: str) -> None:
    """How far images move from themselves has the same distribution."""
    kind = {"trivial-augment": v2.TrivialAugmentWide, "rand-augment": v2.RandAugment}[name]
    x = images(1, 3, 16, 16)[0]
    count = 600
    ours = RECIPES[name](x.expand(count, -1, -1, -1), seeded())
    pixels, transform = (x * 255).byte(), kind()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([transform(pixels) for _ in range(count)]) / 255
    distances = [(changed - x).flatten(1).abs().mean(1) for changed in (ours, theirs)]
    # TrivialAugment moves small images by at most their side, torchvision by up to 32 pixels.
    assert ks_2samp(*(distance.round(decimals=2) for distance in distances)).pvalue > 0.01


def test_idbh_draws_its_operations_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight, of which the shear has two axes."""
    seen: list[Tensor] = []

    def perform(x: Tensor, _operations: object, chosen: Tensor, _strength: Tensor) -> Tensor:
        seen.append(chosen)
        return x

    monkeypatch.setattr(policies, "perform", perform)
    policies.colour_and_shape(torch.zeros(16_000, 1, 4, 4), seeded())
    often = torch.bincount(seen[0], minlength=9) / 1000
    names = list(policies.COLOUR_AND_SHAPE)
    for name, expected in zip(names, [2, 2, 2, 2, 2, 2, 1, 1, 2], strict=True):
        assert abs(float(often[names.index(name)]) - expected) < 0.2


def test_crops_are_of_torchvision_s_sizes() -> None:
    """Areas, ratios and places have the same distributions; a narrow image gets the largest that fits."""
    count, size = 3000, (20, 28)
    draws = torch.rand(count, 2 * ATTEMPTS + 2, generator=seeded())
    ours = torch.stack(crop_boxes(draws, size), 1)
    transform = v2.RandomResizedCrop(8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params([torch.zeros(3, *size)]) for _ in range(count)]
    theirs = torch.tensor(
        [[one[key] for key in ("top", "left", "height", "width")] for one in params]
    ).float()
    for place in range(4):
        assert ks_2samp(ours[:, place], theirs[:, place]).pvalue > 0.001
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.001
    boxes = torch.stack(crop_boxes(draws, (200, 4)), 1)
    params = transform.make_params([torch.zeros(3, 200, 4)])
    fallback = [params[key] for key in ("top", "left", "height", "width")]
    assert fallback == [97, 0, 5, 4]
    assert bool((boxes == torch.tensor(fallback)).all())


def test_a_crop_is_enlarged_as_torchvision_does() -> None:
    """Bilinear within the crop, which it does not look beyond."""
    x = images(20, 3, 13, 17)
    boxes = crop_boxes(drawn(torch.rand, (20, 2 * ATTEMPTS + 2), seeded()), (13, 17))
    found = resized_crop(x, seeded())
    for image, result, box in zip(x, found, torch.stack(boxes, 1).int().tolist(), strict=True):
        expected = vision.resized_crop(image, *box, size=[13, 17], antialias=True)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_cutout_is_a_square_of_half_the_side() -> None:
    """Its centre is anywhere, so at the border a part of it is outside."""
    found = cutout(torch.ones(4000, 1, 8, 8), seeded())[:, 0] == 0
    rows, columns = found.any(2).sum(1), found.any(1).sum(1)
    assert bool((found.sum((1, 2)) == rows * columns).all())
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4}
    assert 0.6 < float((rows == 4).float().mean()) < 0.65  # 5 of 8 centres
    assert float(found.float().mean(0).min()) > 0.05


def test_erasing_has_torchvision_s_areas() -> None:
    """In the share of the images that is asked for."""
    x = torch.ones(3000, 1, 16, 16)
    erased = (erasing(x, seeded(), 1.0) == 0).flatten(1).sum(1)
    transform = v2.RandomErasing(p=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([(transform(x[0]) == 0).sum() for _ in range(3000)])
    assert ks_2samp(erased, theirs).pvalue > 0.001
    half = (erasing(x, seeded(), 0.5) == 0).flatten(1).any(1).float().mean()
    assert 0.46 < float(half) < 0.54


def test_crop_shift_against_a_slow_loop() -> None:
    """A rectangle of the image lies somewhere in a black one; the axes lose up to 10 of 32 pixels in sum."""
    x = images(300, 1, 32, 32) * 0.5 + 0.5
    found = crop_shift(x, seeded())
    lost = []
    for image, result in zip(x[:, 0], found[:, 0], strict=True):
        i, j = (result > 0).any(1).nonzero().flatten(), (result > 0).any(0).nonzero().flatten()
        rectangle = result[i[0] : i[-1] + 1, j[0] : j[-1] + 1]
        height, width = rectangle.shape
        lost.append((32 - height) + (32 - width))
        assert bool((rectangle > 0).all())
        parts = image.unfold(0, height, 1).unfold(1, width, 1)
        same = (parts == rectangle).flatten(2).all(2)
        assert int(same.sum()) == 1
    assert set(lost) == set(range(11))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (3, 17, 5), (2, 32, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_keeps_images_images(
    name: str, shape: tuple[int, int, int], global_randomness: Any
) -> None:
    """Shape, type and range stay; draws are those of the generator alone and differ between images."""
    x = images(1, *shape).repeat(24, 1, 1, 1)
    before = x.clone()
    one, two, other = (augment(x, (name,), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(x, before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len({tuple(image.flatten().tolist()) for image in one}) > 1
    assert (one.shape, one.dtype) == (x.shape, x.dtype)
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    assert global_randomness()


@pytest.mark.parametrize("name", RECIPES)
def test_a_part_of_a_batch_gets_the_same_draws(name: str) -> None:
    """As where several processes share a batch."""
    x = images(16, 3, 12, 12)
    rows = torch.tensor([1, 2, 7, 11, 15])
    part = RECIPES[name](x[rows], PartGenerator.of(seeded(5), 16, rows))
    assert torch.equal(part, RECIPES[name](x, seeded(5))[rows])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("rotate", r"unknown augmentation 'rotate' \(allowed: colour-jitter, crop,"),
        ("flip+trivial-augmnt", r"did you mean 'trivial-augment'\?"),
        ("crop+resized-crop", "crop and resized-crop both cut the image: give one of them"),
        ("idbh-weak+crop", "idbh-weak and crop both cut the image"),
        ("trivial-augment+rand-augment", "both are whole recipes"),
    ],
)
def test_names_that_are_refused(given: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        TrainPlan.model_validate({"augmentation": given})


def test_recipes_train() -> None:
    """A plan names several, in any order, and training sees changed images."""
    from torch import nn

    from defenses import registry

    plan = TrainPlan.model_validate({"augmentation": "cutout+resized-crop+flip", "epochs": 1})
    assert plan.augmentation == ("cutout", "resized-crop", "flip")
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            logits: Tensor = self.linear(x.flatten(1))
            return logits

    x = images(6, 3, 8, 8)
    registry.build("standard", Watching()).fit([(x, torch.arange(6) % 4)], [], plan=plan)
    assert any(one.shape == x.shape and not torch.equal(one, x) for one in seen)
