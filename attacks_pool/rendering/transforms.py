"""Geometric and colour transformations of images (N, C, H, W) in [0, 1].

Each image has its own parameters, and every function is differentiable in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attacks_pool.norms import per_sample

GREY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the brightness."""
Padding = str
"""Values outside an image: ``zeros``, ``edge`` (repeats the border) or ``mirror`` (without the edge)."""


def sample(x: Tensor, rows: Tensor, columns: Tensor, padding: Padding = "zeros") -> Tensor:
    """Bilinear samples of ``x`` at ``rows`` and ``columns`` (N, h, w), in pixels: (N, C, h, w).

    Pixel centres have integer coordinates, where samples equal the pixels bit for bit.
    """
    top, left = rows.detach().floor(), columns.detach().floor()
    down, right = (rows - top).unsqueeze(1), (columns - left).unsqueeze(1)
    corners = [[_gather(x, top + i, left + j, padding) for j in (0, 1)] for i in (0, 1)]
    upper = corners[0][0] * (1 - right) + corners[0][1] * right
    lower = corners[1][0] * (1 - right) + corners[1][1] * right
    return upper * (1 - down) + lower * down


def _gather(x: Tensor, rows: Tensor, columns: Tensor, padding: Padding) -> Tensor:
    """The pixels of ``x`` at integer ``rows`` and ``columns`` (N, h, w)."""
    images, channels, height, width = x.shape
    i, j = _inside(rows, height, padding), _inside(columns, width, padding)
    index = (i * width + j).long().view(images, 1, -1).expand(-1, channels, -1)
    found = x.flatten(2).gather(2, index).view(images, channels, *rows.shape[1:])
    if padding != "zeros":
        return found
    within = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return found * within.unsqueeze(1)


def _inside(at: Tensor, size: int, padding: Padding) -> Tensor:
    if padding == "mirror":
        period = max(2 * (size - 1), 1)
        at = at.remainder(period)
        at = torch.minimum(at, period - at)
    return at.clamp(0, size - 1)


def pixel_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel of ``x``, both (1, H, W)."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype).view(1, -1, 1)
    columns = torch.arange(width, device=x.device, dtype=x.dtype).view(1, 1, -1)
    return rows.expand(1, height, width), columns.expand(1, height, width)


def rotate_and_shift(x: Tensor, parameters: Tensor) -> Tensor:
    """Rotate ``x`` about its centre, then shift it; pixels from outside the image are black.

    ``parameters`` (N, 3): degrees counter-clockwise, pixels to the right, pixels down.
    """
    # Cosine and sine in float64, so that a quarter turn hits the pixel centres exactly.
    radians = parameters[:, 0].double() * (math.pi / 180)
    cosine, sine = (part.to(x.dtype).view(-1, 1, 1) for part in (radians.cos(), radians.sin()))
    rows, columns = pixel_grid(x)
    middle, centre = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    down = rows - middle - parameters[:, 2].view(-1, 1, 1)
    right = columns - centre - parameters[:, 1].view(-1, 1, 1)
    return sample(x, middle + sine * right + cosine * down, centre + cosine * right - sine * down)


def zoom(x: Tensor, factor: float) -> Tensor:
    """Enlarge ``x`` by ``factor`` ≥ 1 about its centre and crop it to its old size."""
    rows, columns = pixel_grid(x)
    middle, centre = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    rows, columns = middle + (rows - middle) / factor, centre + (columns - centre) / factor
    return sample(x, rows.expand(len(x), -1, -1), columns.expand(len(x), -1, -1), "edge")


def displace(x: Tensor, flow: Tensor, padding: Padding = "edge") -> Tensor:
    """Set pixel (i, j) to the value at (i + flow_0, j + flow_1); ``flow`` (N, 2, H, W) is in pixels."""
    rows, columns = pixel_grid(x)
    return sample(x, rows + flow[:, 0], columns + flow[:, 1], padding)


def blur(x: Tensor, sigma: float, *, truncate: float = 4.0, padding: Padding = "edge") -> Tensor:
    """Gaussian blur with standard deviation ``sigma`` in pixels, cut off at ``truncate`` · sigma."""
    half = int(truncate * sigma + 0.5)
    if not half:
        return x
    across = [_blur_matrix(size, sigma, half, padding).to(x.device, x.dtype) for size in x.shape[2:]]
    return across[0] @ x @ across[1].T


def _blur_matrix(size: int, sigma: float, half: int, padding: Padding) -> Tensor:
    """(size, size) float64: row i holds the weights of all pixels in blurred pixel i."""
    steps = torch.arange(-half, half + 1)
    weights = torch.exp(-0.5 * (steps / sigma).double().square())
    at = torch.arange(size)[:, None] + steps
    within = ((at >= 0) & (at < size)) | torch.tensor(padding != "zeros")
    weights = weights / weights.sum() * within
    columns = _inside(at, size, padding)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, columns, weights)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel with ``kernel`` (2a + 1, 2b + 1), with mirrored borders."""
    height, width = x.shape[2:]
    a, b = kernel.shape[0] // 2, kernel.shape[1] // 2
    rows = _inside(torch.arange(-a, height + a, device=x.device), height, "mirror")
    columns = _inside(torch.arange(-b, width + b, device=x.device), width, "mirror")
    wide, result = x.index_select(2, rows).index_select(3, columns), torch.zeros_like(x)
    for i, weights in enumerate(kernel.tolist()):
        for j, weight in enumerate(weights):
            if weight:
                result = result + weight * wide[:, :, i : i + height, j : j + width]
    return result


def grey(x: Tensor) -> Tensor:
    """Brightness (N, 1, H, W): the weighted sum of three channels, or the mean for any other number."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor(GREY_WEIGHTS, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def change_brightness(x: Tensor, amount: Tensor) -> Tensor:
    """clip(x + amount); ``amount`` (N, 1) in [−1, 1]."""
    return (x + per_sample(amount)).clamp(0, 1)


def change_contrast(x: Tensor, amount: Tensor) -> Tensor:
    """clip(m + (1 + amount) · (x − m)), m the image's mean brightness; ``amount`` (N, 1), at least −1."""
    mean = grey(x).mean(dim=(1, 2, 3), keepdim=True)
    return (x + per_sample(amount) * (x - mean)).clamp(0, 1)


def change_saturation(x: Tensor, amount: Tensor) -> Tensor:
    """clip(g + (1 + amount) · (x − g)), g each pixel's own brightness; ``amount`` (N, 1), at least −1."""
    return (x + per_sample(amount) * (x - grey(x))).clamp(0, 1)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate each pixel's hue by ``turns`` (N, 1) of the colour circle; keep value and saturation.

    With V the largest channel, C = V − min and h the hue in [0, 6), channel n of (5, 3, 1) becomes
    V − C · clip(min(k, 4 − k), 0, 1), k = (n + h + 6 · turns) mod 6. ``x`` has three channels.
    """
    largest, smallest = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = largest - smallest
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    share = chroma.clamp_min(1e-12)
    hue = torch.where(
        largest == red,
        (green - blue) / share,
        torch.where(largest == green, 2 + (blue - red) / share, 4 + (red - green) / share),
    )
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = (offsets + hue + 6 * per_sample(turns)).remainder(6)
    return (largest - chroma * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


Render = Callable[[Tensor, Tensor], Tensor]
"""Maps images (N, C, H, W) and parameters (N, …), one set per image, to images."""
