"""Digital corruptions: contrast, elastic, pixelate and JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attacks_pool.calling.randomness import uniform
from attacks_pool.rendering.transforms import blur, pixel_grid, sample

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
ELASTIC = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
"""Per severity: strength and smoothness of the flow, largest shift of three anchors; all in sides."""
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
QUALITY = (80, 65, 58, 50, 40)


def contrast(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Contrast: clip(m + c · (x − m)), m the mean of each channel, c = 0.75 … 0.15."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (mean + CONTRAST[severity - 1] * (x - mean)).clamp(0, 1)


def elastic(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Elastic: a random affine map, then a random flow; severity weakens the map and roughens the flow."""
    strength, smoothness, most = ELASTIC[severity - 1]
    side = min(x.shape[2:])
    rows, columns = _affine(x, most * side, generator)
    x = sample(x, rows, columns, "mirror")
    flow = uniform(x.new_empty(len(x), 2, *x.shape[2:]), generator, -1.0, 1.0)
    flow = strength * side * blur(flow, smoothness * side, truncate=3.0, padding="mirror")
    rows, columns = pixel_grid(x)
    return sample(x, rows + flow[:, 0], columns + flow[:, 1], "mirror").clamp(0, 1)


def _affine(x: Tensor, most: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Source row and column (N, H, W) of each pixel when three anchors move by up to ``most``."""
    height, width = x.shape[2:]
    middle, centre, reach = height // 2, width // 2, min(height, width) // 3
    anchors = [
        [middle + reach, centre + reach],
        [middle - reach, centre + reach],
        [middle - reach, centre - reach],
    ]
    before = torch.tensor(anchors, dtype=torch.float64)
    moves = uniform(torch.empty(len(x), 3, 2), generator, -most, most).double()
    after = torch.cat([before + moves, torch.ones(len(x), 3, 1, dtype=torch.float64)], dim=2)
    back = torch.linalg.solve(after, before.expand(len(x), 3, 2)).to(x.device, x.dtype)
    rows, columns = pixel_grid(x)
    down, right, still = (part[:, :, None, None] for part in back.unbind(1))
    return (
        down[:, 0] * rows + right[:, 0] * columns + still[:, 0],
        down[:, 1] * rows + right[:, 1] * columns + still[:, 1],
    )


def pixelate(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Pixelate: shrinks to a share c = 0.95 … 0.65 of the side by box means; enlarges by nearest pixels."""
    share = PIXELATE[severity - 1]
    down, across = (_coarse(size, int(size * share)).to(x.device, x.dtype) for size in x.shape[2:])
    return (down @ x @ across.T).clamp(0, 1)


def _coarse(size: int, fewer: int) -> Tensor:
    """(size, size) float64: replaces each pixel by the mean of its box, one of ``fewer`` equal boxes."""
    box = ((torch.arange(size, dtype=torch.float64) + 0.5) * fewer / size).floor()
    same = (box[:, None] == box).double()
    return same / same.sum(1, keepdim=True)


def jpeg(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """JPEG: rounds to bytes, compresses at quality c = 80 … 40 and decompresses."""
    pixels = (255 * x).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    read = [_compressed(picture, QUALITY[severity - 1]) for picture in pixels]
    return (torch.stack(read).float() / 255).to(x.device, x.dtype)


def _compressed(picture: np.ndarray, quality: int) -> Tensor:
    """(C, H, W) bytes of the picture (H, W, C) after JPEG compression."""
    packed = BytesIO()
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
        packed, "JPEG", quality=quality
    )
    with Image.open(packed) as image:
        read = torch.from_numpy(np.array(image))
    return read[None] if read.ndim == 2 else read.permute(2, 0, 1)
