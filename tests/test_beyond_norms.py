"""Attacks that no norm bounds: what they render, and that they render the worst of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from attacks_pool import FAMILIES, InputError, pool, verify
from attacks_pool.attacks import corruptions
from attacks_pool.attacks.rotation_translation import grid
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.rendering import blur as blurs
from attacks_pool.rendering import weather
from attacks_pool.rendering.transforms import (
    blur,
    change_brightness,
    change_contrast,
    change_saturation,
    convolve,
    displace,
    rotate_and_shift,
    turn_hue,
    zoom,
)

CORRUPTIONS = [f"corruption-{name}" for name in corruptions.CORRUPTIONS]
COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hue": turn_hue,
    "saturation": change_saturation,
    "brightness": change_brightness,
    "contrast": change_contrast,
}
SEARCHES = ["rotation-translation", "elastic", *COLOURS]
SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28)]


def natural(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images whose spectrum falls off like a photograph's, each from black to white."""
    draws = torch.Generator().manual_seed(seed)
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    frequency = (rows[:, None].square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
    noise = torch.fft.fft2(torch.randn(count, channels, height, width, generator=draws))
    x = torch.fft.ifft2(noise / frequency**1.5).real
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low)).clamp(0, 1)


def column(count: int, value: float) -> Tensor:
    """(count, 1) of one parameter."""
    return torch.full((count, 1), value)


def classifier(x: Tensor, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A small random network, and what it says of ``x``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wide = nn.Linear(8 * 16, 10)
        model = nn.Sequential(
            nn.Conv2d(x.shape[1], 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), wide
        ).eval()
    with torch.no_grad():
        # Centred scores, so that the points do not all get one class.
        wide.bias -= model(x).mean(0)
        return model, model(x).argmax(1)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


# What is rendered.


@pytest.mark.parametrize("shape", [*SHAPES, (3, 9, 14)])
def test_nothing_is_changed_by_zero(shape: tuple[int, int, int]) -> None:
    x = natural(4, *shape)
    assert torch.equal(rotate_and_shift(x, torch.zeros(4, 3)), x)
    assert torch.equal(displace(x, torch.zeros(4, 2, *shape[1:])), x)
    assert torch.equal(zoom(x, 1.0), x)
    assert torch.equal(blur(x, 0.0), x)
    for name, render in COLOURS.items():
        if shape[0] == 3 or name in ("brightness", "contrast"):
            assert torch.allclose(render(x, column(4, 0.0)), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("side", [8, 9, 32])
def test_quarter_turns_are_those_of_torch(quarters: int, side: int) -> None:
    """Counter-clockwise, about the centre of the image and not of a pixel."""
    x = natural(3, 3, side, side)
    turned = rotate_and_shift(x, torch.tensor([[90.0 * quarters, 0, 0]]).expand(3, 3))
    assert torch.allclose(turned, x.rot90(quarters, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-1, -2), (4, -4)])
def test_whole_pixels_shift_and_leave_black(right: int, down: int) -> None:
    x = natural(2, 1, 9, 12)
    padded = F.pad(x, (4, 4, 4, 4))
    expected = padded[:, :, 4 - down : 13 - down, 4 - right : 16 - right]
    moved = rotate_and_shift(x, torch.tensor([[0.0, right, down]]).expand(2, 3))
    assert torch.equal(moved, expected)


def test_each_image_goes_its_own_way() -> None:
    x = natural(3, 1, 8, 8)
    parameters = torch.tensor([[0.0, 0, 0], [90, 0, 0], [0, 1, 0]])
    together = rotate_and_shift(x, parameters)
    alone = torch.cat([rotate_and_shift(x[i : i + 1], parameters[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("degrees", [-30.0, 12.5, 30.0])
def test_rotation_is_that_of_torchvision(degrees: float) -> None:
    x = natural(2, 3, 32, 32)
    turned = rotate_and_shift(x, torch.tensor([[degrees, 0, 0]]).expand(2, 3))
    peer = TF.rotate(x, degrees, interpolation=TF.InterpolationMode.BILINEAR)
    assert torch.allclose(turned, peer, rtol=0, atol=2e-4)


def test_hue_turns_the_circle() -> None:
    x = natural(2, 3, 8, 8)
    assert torch.allclose(turn_hue(x, column(2, 1.0)), x, rtol=0, atol=1e-5)
    assert torch.allclose(turn_hue(x, column(2, 1 / 3)), x.roll(1, 1), rtol=0, atol=1e-5)
    grey = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(turn_hue(grey, column(2, 0.4)), grey)


@pytest.mark.parametrize("amount", [-1.0, -0.3, 0.2, 1 / 3, 1.0])
def test_colours_are_those_of_torchvision(amount: float) -> None:
    x = natural(4, 3, 16, 16)
    given, factor = column(4, amount), 1 + amount
    turned = change_contrast(x, given), change_saturation(x, given), turn_hue(x, given / 2)
    peers = TF.adjust_contrast(x, factor), TF.adjust_saturation(x, factor), TF.adjust_hue(x, amount / 2)
    for mine, peer in zip(turned, peers, strict=True):
        assert torch.allclose(mine, peer, rtol=0, atol=1e-4)
    grey = TF.adjust_contrast(x[:, :1], factor)
    assert torch.allclose(change_contrast(x[:, :1], given), grey, rtol=0, atol=1e-5)


def test_brightness_adds() -> None:
    """Black pixels gain too; torchvision's factor would leave them black."""
    x = natural(2, 1, 8, 8)
    assert torch.equal(change_brightness(x, column(2, 0.25)), (x + 0.25).clamp(0, 1))


def test_blur_is_that_of_torchvision() -> None:
    x = natural(2, 3, 21, 32)
    peer = TF.gaussian_blur(F.pad(x, (6, 6, 6, 6), mode="replicate"), [13, 13], [1.5, 1.5])
    assert torch.allclose(blur(x, 1.5), peer[:, :, 6:-6, 6:-6], rtol=0, atol=1e-5)
    mirrored = TF.gaussian_blur(x, [13, 13], [1.5, 1.5])
    assert torch.allclose(blur(x, 1.5, padding="mirror"), mirrored, rtol=0, atol=1e-5)
    weights = torch.tensor([0.2, 0.5, 0.3])
    expected = F.conv2d(
        F.pad(x[:, :1], (1, 1, 1, 1), mode="reflect"), torch.outer(weights, weights)[None, None]
    )
    assert torch.allclose(convolve(x[:, :1], torch.outer(weights, weights)), expected, rtol=0, atol=1e-6)


# What is searched.


def every_point(name: str, x: Tensor) -> list[Tensor]:
    """Images of many single parameters that the attack may choose, at its default eps."""
    eps = pool.get(name).eps
    if name == "rotation-translation":
        largest = torch.tensor([30.0, 0.1 * x.shape[3], 0.1 * x.shape[2]])
        return [rotate_and_shift(x, (share * largest).expand(len(x), 3)) for share in grid(31, 5)[0]]
    sizes = torch.linspace(-eps, eps, 21).tolist()
    return [COLOURS[name](x, column(len(x), size)) for size in sizes]


@pytest.mark.parametrize("name", ["rotation-translation", *COLOURS])
def test_worst_of_all_is_never_weaker_than_any_one(name: str) -> None:
    """A point that any single parameter fools is fooled; any other has the highest loss of them all."""
    x = natural(8, 3, 10, 10)
    model, y = classifier(x)
    x_adv = pool.get(name)(model, x, y)
    with torch.no_grad():
        fooled = model(x_adv).argmax(1) != y
        reached = losses(model, x_adv, y)
        assert fooled.any() or name != "rotation-translation"
        for images in every_point(name, x):
            assert not ((model(images).argmax(1) != y) & ~fooled).any()
            moved = (images - x).abs().amax((1, 2, 3)) > 1e-5
            assert (reached >= losses(model, images, y) - 1e-5)[~fooled & moved].all()


def test_gradient_finds_what_lies_between_grid_points() -> None:
    """Of a loss with one sharp peak in the mean brightness the peak is found."""

    class Peak(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Class 1 is near where the mean is 0.5 + 0.0637."""
            off = x.mean((1, 2, 3)) - 0.5637
            return torch.stack([torch.ones_like(off), 1 - off.abs()], dim=1)

    x, y = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.long)
    attack = pool.get("brightness", eps=0.2, grid=4, steps=20)
    found = attack(Peak(), x, y).mean((1, 2, 3))
    assert (found - 0.5637).abs().amax() < 0.003
    blunt = pool.get("brightness", eps=0.2, grid=4, steps=1, step_size=1e-6)(Peak(), x, y).mean((1, 2, 3))
    assert (blunt - 0.5637).abs().amin() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_elastic_fools_and_stays_within_its_length(shape: tuple[int, int, int]) -> None:
    """On a ramp the displacement can be read off the image: never beyond eps of the side."""
    x = natural(8, *shape)
    model, y = classifier(x)
    attack = pool.get("elastic", steps=10)
    x_adv = attack(model, x, y, generator=keyed_generator(0))
    assert losses(model, x_adv, y).mean() > losses(model, x, y).mean()
    assert losses(model, x_adv, y).mean() > losses(model, displaced_at_random(x), y).mean()
    side = shape[1]
    ramp = (torch.arange(side) / (side - 1)).expand(2, *shape).contiguous()
    model, y = classifier(ramp)
    bent = attack(model, ramp, y, generator=keyed_generator(0))
    moved = (bent - ramp).abs() * (side - 1)
    assert 0.1 * attack.eps * side < float(moved.amax()) <= attack.eps * side * (1 + 1e-4)


def displaced_at_random(x: Tensor) -> Tensor:
    flow = 2 * torch.rand(len(x), 2, *x.shape[2:], generator=torch.Generator().manual_seed(0)) - 1
    side = x.shape[2]
    return displace(x, 0.05 * side * blur(flow, 0.06 * side))


def test_random_search_draws_and_stays_in_range() -> None:
    x = natural(6, 1, 12, 12)
    model, y = classifier(x)
    attack = pool.get("rotation-translation", search="random", draws=4)
    first, second = (attack(model, x, y, generator=keyed_generator(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    white = torch.ones(4, 1, 20, 20)
    small = pool.get("rotation-translation", search="random", eps=0.01)(
        nn.Flatten(), white, torch.zeros(4).long()
    )
    # Two pixels at most at eps 1, so at eps 0.01 the middle stays white.
    assert torch.allclose(small[:, :, 1:-1, 1:-1], white[:, :, 1:-1, 1:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SEARCHES)
def test_smaller_eps_is_a_smaller_change(name: str) -> None:
    x = natural(8, 3, 16, 16)
    model, y = classifier(x)
    attack = pool.get(name)
    full = (attack(model, x, y, generator=keyed_generator(0)) - x).abs().mean()
    tenth = (attack.scaled(0.1)(model, x, y, generator=keyed_generator(0)) - x).abs().mean()
    assert 0 < tenth < 0.5 * full


@pytest.mark.parametrize("name", ["hue", "saturation"])
def test_colour_is_asked_for_in_one_line(name: str) -> None:
    x = natural(2, 1, 8, 8)
    with pytest.raises(InputError, match=rf"attack '{name}' needs images of 3 channels, not 1") as caught:
        pool.get(name)(nn.Flatten(), x, torch.zeros(2).long())
    assert "\n" not in str(caught.value)


# The corruptions.


def corrupted(name: str, x: Tensor, severity: int, seed: int = 0) -> Tensor:
    attack = pool.get(name, eps=severity)
    return attack(nn.Flatten(), x, torch.zeros(len(x)).long(), generator=keyed_generator(seed))


def test_there_are_fifteen_of_one_family() -> None:
    names = [name for name in pool.names() if pool.info(name).family == "corruption"]
    assert sorted(CORRUPTIONS) == names
    assert len(names) == 15
    for name in names:
        info = pool.info(name)
        assert (info.norm, info.access, info.paper) == (None, "black-box", "1903.12261")
        assert pool.get(name).text == f"{name}:eps=3"
        assert info.passes({}) == (0, 0)


def test_fifteen_corruptions_are_one_family_to_sampling() -> None:
    held = {pool.info(name).family for name in pool.names()}
    assert held <= set(FAMILIES)
    for seed in range(5):
        drawn = pool.sample_sequence(len(held), seed, budget="cifar10")
        assert sum(attack.info.family == "corruption" for attack in drawn) == 1


@pytest.mark.parametrize("severity", ["0", "6", "2.5", "mild"])
def test_severity_is_a_whole_number_from_1_to_5(severity: str) -> None:
    with pytest.raises(InputError, match=r"corruption-fog.eps="):
        pool.get("corruption-fog", eps=severity)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 9, 14)])
def test_corruption_draws_for_each_point(name: str, shape: tuple[int, int, int]) -> None:
    """The same from one generator, in the box, and the neighbours do not matter."""
    x = natural(4, *shape)
    others = torch.cat([1 - x[:2], x[2:]])
    for severity in (1, 5):
        first = corrupted(name, x, severity)
        assert first.dtype == torch.float32
        assert torch.equal(first, corrupted(name, x, severity))
        assert torch.equal(first[2:], corrupted(name, others, severity)[2:])
        zeros = torch.zeros(4).long()
        verdict = verify(nn.Flatten(), x, zeros, first, norm=None, eps=severity)
        assert not verdict.invalid.any()
        assert verdict.bound == "box-only"
    for colour in (0.0, 1.0):
        assert torch.isfinite(corrupted(name, torch.full_like(x, colour), 5)).all()


RANDOM = ("noise", "glass", "motion", "snow", "frost", "fog", "elastic")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_draws_where_it_is_random(name: str) -> None:
    x = natural(2, 3, 32, 32)[:1].expand(2, -1, -1, -1).contiguous()
    first, other = corrupted(name, x, 5), corrupted(name, x, 5, seed=1)
    random = any(word in name for word in RANDOM)
    assert torch.equal(first, other) is not random
    # Two equal images in one batch have draws of their own.
    assert torch.equal(first[0], first[1]) is not random


def far(x: Tensor, x_adv: Tensor) -> float:
    """Mean distance."""
    return float((x_adv - x).flatten(1).norm(dim=1).mean())


def unexplained(x: Tensor, x_adv: Tensor) -> float:
    """Mean share of the image that is no linear function of the clean one, 1 − r²."""
    a, b = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (x, x_adv))
    r = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return float((1 - r.square()).mean())


MONOTONE = [name for name in CORRUPTIONS if name[11:] not in ("elastic", "glass-blur", "frost")]


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_severity_takes_images_further_away(name: str, shape: tuple[int, int, int]) -> None:
    """Each severity at least as far as the one before, the last much further than the first.

    The published disc of severity 4 is as wide as the smoothed one of 3: there 6 % are let go.
    """
    x = natural(24, *shape)
    away = [far(x, corrupted(name, x, severity)) for severity in range(1, 6)]
    slack = 0.06 if name == "corruption-defocus-blur" else 1e-4
    assert all(after >= (1 - slack) * before for before, after in pairwise(away)), away
    assert away[4] > 1.2 * away[0]


def test_severity_of_frost_hides_more() -> None:
    """Its parameters darken the image as they add ice, so distance alone says little."""
    x = natural(24, 3, 32, 32)
    hidden = [unexplained(x, corrupted("corruption-frost", x, severity)) for severity in range(1, 6)]
    assert hidden == sorted(hidden)
    assert hidden[4] > 2 * hidden[0]


def test_severity_of_glass_swaps_more() -> None:
    """Severities 1, 2, 3 swap once with more and more blur, 4 and 5 twice with the blur of 2 and 3."""
    x = natural(24, 3, 32, 32)
    away = [far(x, corrupted("corruption-glass-blur", x, severity)) for severity in range(1, 6)]
    assert away[3] > away[1]
    assert away[4] > away[2]
    rough = [
        corrupted("corruption-glass-blur", x, severity).diff(dim=3).abs().mean() for severity in (1, 2, 3)
    ]
    assert rough[0] >= rough[1] > rough[2]


def test_severity_of_elastic_bends_more() -> None:
    """The affine part weakens; on a ramp second differences are blind to it and see the flow."""
    ramp = (0.2 + 0.6 * torch.arange(32) / 31).expand(24, 1, 32, 32).contiguous()
    bent = [corrupted("corruption-elastic", ramp, severity)[:, :, 8:-8, 8:-8] for severity in range(1, 6)]
    rough = [float(images.diff(n=2, dim=3).abs().mean()) for images in bent]
    assert rough[0] < 1e-4
    assert rough == sorted(rough)
    assert rough[4] > 10 * rough[1]


def test_noises_have_their_published_strength() -> None:
    grey = torch.full((8, 3, 32, 32), 0.5)
    gaussian = corrupted("corruption-gaussian-noise", grey, 5) - grey
    assert float(gaussian.std()) == pytest.approx(0.10, rel=0.02)
    shot = corrupted("corruption-shot-noise", grey, 5)
    assert float(shot.std()) == pytest.approx((0.5 / 50) ** 0.5, rel=0.02)
    assert torch.allclose(shot * 50, (shot * 50).round(), atol=1e-4)
    impulse = corrupted("corruption-impulse-noise", grey, 5)
    assert float((impulse != grey).float().mean()) == pytest.approx(0.07, rel=0.1)
    assert set(impulse.unique().tolist()) == {0.0, 0.5, 1.0}


def test_brightness_and_contrast_have_closed_forms() -> None:
    x = natural(2, 3, 16, 16)
    lit = corrupted("corruption-brightness", x, 3)
    assert torch.allclose(lit.amax(1), (x.amax(1) + 0.15).clamp(0, 1), atol=1e-6)
    # Hue and saturation stay: the channels keep their proportions.
    assert torch.allclose(lit * x.amax(1, keepdim=True), x * lit.amax(1, keepdim=True), atol=1e-6)
    assert torch.allclose(
        corrupted("corruption-brightness", x[:, :1], 3), (x[:, :1] + 0.15).clamp(0, 1), atol=1e-6
    )
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupted("corruption-contrast", x, 5), mean + 0.15 * (x - mean), atol=1e-6)


@pytest.mark.parametrize("side", [8, 28, 32])
def test_pixelate_is_that_of_pillow(side: int) -> None:
    x = (255 * natural(3, 3, side, side)).round() / 255
    for severity, share in enumerate((0.95, 0.9, 0.85, 0.75, 0.65), start=1):
        ours = corrupted("corruption-pixelate", x, severity)
        for image, mine in zip(x, ours, strict=True):
            small = int(side * share)
            picture = TF.to_pil_image(image).resize((small, small), Image.Resampling.BOX)
            peer = TF.to_tensor(picture.resize((side, side), Image.Resampling.BOX))
            assert torch.allclose(mine, peer, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(channels: int) -> None:
    x = natural(2, channels, 28, 28)
    ours = corrupted("corruption-jpeg", x, 5)
    for image, mine in zip(x, ours, strict=True):
        packed = io.BytesIO()
        pixels = (255 * image).round().byte()
        TF.to_pil_image(pixels).save(packed, "JPEG", quality=40)
        read = np.array(Image.open(packed)).reshape(28, 28, channels)
        assert torch.equal(mine, torch.from_numpy(read).permute(2, 0, 1).float() / 255)


def test_defocus_kernels() -> None:
    """At 32 pixels the published ones; at other sides as wide in proportion, none of them a single pixel."""
    plus = blurs.disc(1.0, 1e-3)
    assert torch.allclose(plus[1:4, 1:4], torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).double() / 5)
    for radius, rim in blurs.DEFOCUS:
        kernel = blurs.disc(radius, rim)
        assert float(kernel.sum()) == pytest.approx(1)
        assert torch.allclose(blurs.spread(kernel, 1.0), kernel)
        for scale in (0.5, 0.875, 3.0, 7.0):
            wide = blurs.spread(kernel, scale)
            half = wide.shape[0] // 2
            at = torch.arange(-half, half + 1).double()
            old = torch.arange(-(kernel.shape[0] // 2), kernel.shape[0] // 2 + 1).double()
            spread_of = float((wide.sum(0) * at.abs()).sum()) / float((kernel.sum(0) * old.abs()).sum())
            assert float(wide.sum()) == pytest.approx(1)
            assert scale <= 1.001 * spread_of
            assert float(wide.amax()) < 0.99


def test_glass_only_moves_pixels() -> None:
    """At the least severity the blur is void: the same pixels, each at most two steps from its place."""
    x = torch.arange(16 * 16).float().view(1, 1, 16, 16) / 255
    glass = corrupted("corruption-glass-blur", x, 1)
    assert torch.equal(glass.flatten().sort().values, x.flatten())
    assert 0.2 < float((glass != x).float().mean()) < 1


def test_motion_keeps_what_does_not_vary_and_goes_sideways() -> None:
    """Within 45 degrees of the horizontal, a vertical edge blurs more than a horizontal one on the whole."""
    flat = torch.full((2, 3, 32, 32), 0.3)
    assert torch.allclose(corrupted("corruption-motion-blur", flat, 5), flat, atol=1e-6)
    stripes = (torch.arange(32) // 4 % 2).float().expand(16, 1, 32, 32).contiguous()
    across = corrupted("corruption-motion-blur", stripes, 3)
    along = corrupted("corruption-motion-blur", stripes.transpose(2, 3).contiguous(), 3)
    assert float(across.std()) < float(along.std())


@pytest.mark.parametrize("side", [8, 9, 28, 32])
def test_plasma_fills_each_pixel_and_is_rougher_where_detail_fades_less(side: int) -> None:
    x = torch.zeros(16, 3, side, side + 3)
    rough = []
    for fading in (3.0, 1.75):
        heights = weather.plasma(x, fading, keyed_generator(0))
        assert heights.shape == (16, 1, side, side + 3)
        assert float(heights.amin()) >= 0
        assert float(heights.amax()) <= 1
        rough.append(float(heights.diff(dim=3).abs().mean() / heights.std()))
    assert rough[1] > 1.2 * rough[0]
