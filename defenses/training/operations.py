"""Changes of images that training recipes draw from, each with its own strength for every image.

All of them map images (N, C, H, W) in [0, 1] and strengths (N,) to images in [0, 1]. They compute what
torchvision's functions of the same names do, without rounding to 8 bits where the change does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks_pool.rendering.transforms import change_contrast, change_saturation

Operation = Callable[[Tensor, Tensor], Tensor]


def unchanged(x: Tensor, _: Tensor) -> Tensor:
    """The images themselves."""
    return x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Every pixel times ``factor``."""
    return (x * factor.view(-1, 1, 1, 1)).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Distances from the image's mean brightness times ``factor``."""
    return change_contrast(x, factor.view(-1, 1) - 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Distances from each pixel's own brightness times ``factor``; grey images stay as they are."""
    return change_saturation(x, factor.view(-1, 1) - 1) if x.shape[1] == 3 else x


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Distances from a smoothed image times ``factor``; the border is not smoothed."""
    if min(x.shape[2:]) <= 2:
        return x
    kernel = torch.full((3, 3), 1 / 13, device=x.device, dtype=x.dtype)
    kernel[1, 1] = 5 / 13
    smooth = x.clone()
    inner = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None])
    smooth[:, :, 1:-1, 1:-1] = inner.view(smooth[:, :, 1:-1, 1:-1].shape)
    return (smooth + factor.view(-1, 1, 1, 1) * (x - smooth)).clamp(0, 1)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the ``bits`` highest of the 8 bits of each pixel."""
    lost = (8 - bits).to(torch.uint8).view(-1, 1, 1, 1)
    return ((_bytes(x) >> lost) << lost).to(x.dtype) / 255


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert pixels of at least ``threshold``."""
    return torch.where(x >= threshold.view(-1, 1, 1, 1), 1 - x, x)


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel to the whole of [0, 1]; constant channels stay as they are."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = low == high
    return torch.where(flat, x, (x - low) / torch.where(flat, 1.0, high - low)).clamp(0, 1)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Spread the values of every channel, as 8 bits, evenly over [0, 1]."""
    # Imported here, since it takes a second and few plans need it.
    from torchvision.transforms.v2 import functional

    spread: Tensor = functional.equalize(_bytes(x))
    return spread.to(x.dtype) / 255


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre."""
    radians = degrees * (math.pi / 180)
    cosine, sine = radians.cos(), radians.sin()
    none = torch.zeros_like(sine)
    return _moved(x, [[cosine, -sine, none], [sine, cosine, none]])


def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Shear along rows about the upper left corner."""
    return _sheared(x, slope, x.shape[2] / 2, along_rows=True)


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    """Shear along columns about the upper left corner."""
    return _sheared(x, slope, x.shape[3] / 2, along_rows=False)


def centred_shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Shear along rows about the centre."""
    return _sheared(x, slope, 0, along_rows=True)


def centred_shear_y(x: Tensor, slope: Tensor) -> Tensor:
    """Shear along columns about the centre."""
    return _sheared(x, slope, 0, along_rows=False)


def translate_x(x: Tensor, pixels: Tensor) -> Tensor:
    """Shift to the right by the whole part of ``pixels``."""
    one, none = torch.ones_like(pixels), torch.zeros_like(pixels)
    return _moved(x, [[one, none, -pixels.trunc()], [none, one, none]])


def translate_y(x: Tensor, pixels: Tensor) -> Tensor:
    """Shift down by the whole part of ``pixels``."""
    one, none = torch.ones_like(pixels), torch.zeros_like(pixels)
    return _moved(x, [[one, none, none], [none, one, -pixels.trunc()]])


def perform(x: Tensor, operations: Mapping[str, Operation], chosen: Tensor, strength: Tensor) -> Tensor:
    """Change each image by the operation with the number ``chosen`` (N,), with its own ``strength`` (N,)."""
    result = x.clone()
    for number, operation in enumerate(operations.values()):
        mine = (chosen == number).nonzero().flatten()
        if len(mine):
            result[mine] = operation(x[mine], strength[mine])
    return result


def _sheared(x: Tensor, slope: Tensor, from_centre: float, *, along_rows: bool) -> Tensor:
    """Shear about a point that lies ``from_centre`` pixels above or to the left of the centre."""
    one, none = torch.ones_like(slope), torch.zeros_like(slope)
    slope = slope.to(x.dtype)
    if along_rows:
        return _moved(x, [[one, slope, slope * from_centre], [none, one, none]])
    return _moved(x, [[one, none, none], [slope, one, slope * from_centre]])


def _moved(x: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """Take each pixel from where an affine map sends it: the nearest pixel, black outside the image.

    ``rows`` are the two rows (a, b, c) of the map from output to input coordinates, in pixels from the
    centre to the right and down; each entry is (N,).
    """
    height, width = x.shape[2:]
    (a, b, c), (d, e, f) = rows
    # grid_sample's coordinates go from -1 to 1 along both sides.
    across = torch.stack([a, b * (height / width), c * (2 / width)], 1)
    down = torch.stack([d * (width / height), e, f * (2 / height)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", align_corners=False)


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)
