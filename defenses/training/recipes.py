"""Augmentation recipes of the field by name: each changes every image of a batch by its own random draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attacks_pool.calling.randomness import drawn
from attacks_pool.rendering.transforms import sample
from defenses.training import operations as do
from defenses.training.policies import colour_and_shape, rand_augment, trivial_augment

Recipe = Callable[[Tensor, torch.Generator], Tensor]

ATTEMPTS = 10
"""How often a rectangle of a random size and shape is drawn before there is none that fits."""
JITTER = 0.25
"""How far the factors of the colour jitter are from 1."""
PUBLISHED_SHIFT = 10 / 32
"""The most pixels that IDBH cuts off, as a share of the side."""


def resized_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of 8 to 100 % of the area and a ratio of 3/4 to 4/3, enlarged to the whole image.

    Sizes, places and the bilinear enlargement are those of torchvision's ``RandomResizedCrop``.
    """
    height, width = x.shape[2:]
    draws = drawn(torch.rand, (len(x), 2 * ATTEMPTS + 2), generator).to(x.device)
    top, left, rows, columns = crop_boxes(draws, (height, width))
    return sample(
        x,
        _spread(top, rows, height)[:, :, None].expand(-1, -1, width),
        _spread(left, columns, width)[:, None, :].expand(-1, height, -1),
        "edge",
    )


def crop_boxes(draws: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First row and column, height and width (N,) of each crop; ``draws`` (N, 22) are uniform in [0, 1)."""
    height, width = size
    rows, columns, found = _rectangles(
        draws[:, :-2], size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), crop=True
    )
    # If none fits, the largest rectangle of an allowed ratio is taken from the middle.
    rows = torch.where(found, rows, min(height, round(width / (3 / 4))))
    columns = torch.where(found, columns, min(width, round(height * (4 / 3))))
    top = torch.where(found, (draws[:, -2] * (height - rows + 1)).floor(), ((height - rows) / 2).floor())
    left = torch.where(found, (draws[:, -1] * (width - columns + 1)).floor(), ((width - columns) / 2).floor())
    return top, left, rows, columns


def _spread(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Where ``count`` pixels lie that cover ``length`` (N,) ones from ``start`` (N,) on: (N, count)."""
    centres = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    within = (centres * length[:, None] - 0.5).clamp(min=0)
    return start[:, None] + torch.minimum(within, length[:, None] - 1)


def _rectangles(
    draws: Tensor,
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    crop: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Height and width (N,) of the first drawn rectangle that fits, and whether there is one (N,).

    Area and logarithm of the ratio are uniform, as in torchvision. ``crop``: the ratio is width / height,
    and the rectangle may be as large as the image; otherwise it is height / width, and it must be smaller.
    """
    area = (scale[0] + (scale[1] - scale[0]) * draws[:, ::2]) * (size[0] * size[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draws[:, 1::2]).exp()
    longer, shorter = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    rows, columns = (shorter, longer) if crop else (longer, shorter)
    if crop:
        fits = (rows > 0) & (rows <= size[0]) & (columns > 0) & (columns <= size[1])
    else:
        fits = (rows < size[0]) & (columns < size[1])
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    return rows.gather(1, first)[:, 0], columns.gather(1, first)[:, 0], fits.any(1)


def colour_jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, in this order, by factors from 0.75 to 1.25."""
    factors = 1 + JITTER * (2 * drawn(torch.rand, (len(x), 3), generator).to(x.device) - 1)
    for number, change in enumerate((do.brightness, do.contrast, do.saturation)):
        x = change(x, factors[:, number])
    return x


def cutout(x: Tensor, generator: torch.Generator) -> Tensor:
    """A black square of half the side, centred anywhere in the image (Cutout, arXiv:1708.04552)."""
    height, width = x.shape[2:]
    side = max(1, min(height, width) // 2)
    draws = drawn(torch.rand, (len(x), 2), generator).to(x.device)
    top = (draws[:, 0] * height).floor() - side // 2
    left = (draws[:, 1] * width).floor() - side // 2
    return _blackened(x, top, left, torch.full_like(top, side), torch.full_like(left, side))


def erasing(x: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """A black rectangle of 2 to 33 % of the area in a ``share`` of the images, as in torchvision."""
    height, width = x.shape[2:]
    draws = drawn(torch.rand, (len(x), 2 * ATTEMPTS + 3), generator).to(x.device)
    rows, columns, found = _rectangles(
        draws[:, :-3], (height, width), scale=(0.02, 0.33), ratio=(0.3, 3.3), crop=False
    )
    erased = found & (draws[:, -1] < share)
    top = (draws[:, -3] * (height - rows + 1)).floor()
    left = (draws[:, -2] * (width - columns + 1)).floor()
    return _blackened(x, top, left, rows * erased, columns * erased)


def crop_shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Cut pixels off two or more sides and put the rest anywhere in a black image of the old size.

    The number of pixels that both axes lose together is uniform from 0 to 10 at 32 pixels.
    """
    height, width = x.shape[2:]
    draws = drawn(torch.rand, (len(x), 6), generator).to(x.device)
    lost = (draws[:, 0] * (round(PUBLISHED_SHIFT * min(height, width)) + 1)).floor()
    across = (draws[:, 1] * (lost + 1)).floor()
    down = lost - across
    (left, top), (right_by, down_by) = (
        [(draws[:, place + number] * (by + 1)).floor() for number, by in enumerate((across, down))]
        for place in (2, 4)
    )
    rows = torch.arange(height, device=x.device) - down_by[:, None]
    columns = torch.arange(width, device=x.device) - right_by[:, None]
    inside_rows = (rows >= 0) & (rows < height - down[:, None])
    inside_columns = (columns >= 0) & (columns < width - across[:, None])
    kept = (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)
    rows = (rows + top[:, None]).clamp(0, height - 1)
    columns = (columns + left[:, None]).clamp(0, width - 1)
    index = (rows[:, :, None] * width + columns[:, None, :]).long().view(len(x), 1, -1)
    return x.flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).view(x.shape) * kept


def _blackened(x: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images with one black rectangle each; it may reach beyond the image."""
    i = torch.arange(x.shape[2], device=x.device)
    j = torch.arange(x.shape[3], device=x.device)
    down = (i >= top[:, None]) & (i < (top + rows)[:, None])
    across = (j >= left[:, None]) & (j < (left + columns)[:, None])
    return x.masked_fill((down[:, :, None] & across[:, None, :]).unsqueeze(1), 0.0)


def idbh(x: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """IDBH for adversarial training (arXiv:2301.09879): flip, crop-shift, colour or shape, erasing."""
    mirrored = drawn(torch.rand, (len(x),), generator).to(x.device) < 0.5
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
    return erasing(colour_and_shape(crop_shift(x, generator), generator), generator, share)


def idbh_weak(x: Tensor, generator: torch.Generator) -> Tensor:
    """IDBH that erases a rectangle in half of the images."""
    return idbh(x, generator, 0.5)


def idbh_strong(x: Tensor, generator: torch.Generator) -> Tensor:
    """IDBH that erases a rectangle in every image."""
    return idbh(x, generator, 1.0)


RECIPES: Mapping[str, Recipe] = {
    "resized-crop": resized_crop,
    "colour-jitter": colour_jitter,
    "trivial-augment": trivial_augment,
    "rand-augment": rand_augment,
    "idbh-weak": idbh_weak,
    "idbh-strong": idbh_strong,
    "cutout": cutout,
}
"""The recipes by name, in the order in which they are applied."""
