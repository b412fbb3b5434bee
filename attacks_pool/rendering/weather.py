"""Weather corruptions: snow, frost, fog and brightness."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks_pool.calling.randomness import normal, uniform
from attacks_pool.norms import per_sample
from attacks_pool.rendering.blur import trail
from attacks_pool.rendering.scale import scale_of
from attacks_pool.rendering.transforms import grey, zoom

SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
"""Per severity: mean and standard deviation of the flakes, zoom of the flakes, threshold below which they
vanish, half window and standard deviation of their trails, weight of the original image."""
FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
"""Per severity: weights of the image and of the frost."""
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
"""Per severity: thickness, and how fast detail fades from one octave to the next."""
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
ICE = (0.80, 0.92, 1.0)
"""Red, green and blue of the frost."""


def snow(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Snow: a paler image with flakes and their trails, overlaid again after a half turn."""
    mean, deviation, size, faint, half, sigma, share = SNOW[severity - 1]
    flakes = mean + deviation * normal(x[:, :1], generator)
    flakes = zoom(flakes, size * max(1.0, scale_of(x)))
    flakes = torch.where(flakes < faint, torch.zeros_like(flakes), flakes).clamp(0, 1)
    flakes = trail(flakes, half, sigma, uniform(x[:, 0, 0, 0], generator, -135.0, -45.0))
    pale = torch.maximum(x, 1.5 * grey(x) + 0.5)
    return (share * x + (1 - share) * pale + flakes + flakes.flip((2, 3))).clamp(0, 1)


def frost(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Frost: clip(a · x + b · ice), where ice is a generated texture of bright veins, not a photograph.

    The published corruption crops one of five pictures. Here the veins are the crests of a random height map,
    (1 − |2 · plasma − 1|)², on a pale background, tinted bluish in colour images.
    """
    kept, amount = FROST[severity - 1]
    veins = (1 - (2 * plasma(x, 1.6, generator) - 1).abs()).square()
    ice = 0.3 + 0.7 * veins
    if x.shape[1] == 3:
        ice = ice * torch.tensor(ICE, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return (kept * x + amount * ice).clamp(0, 1)


def fog(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Fog: clip((x + c · plasma) · max(x) / (max(x) + c)), c = 0.2 … 1.5."""
    thickness, fading = FOG[severity - 1]
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return ((x + thickness * plasma(x, fading, generator)) * brightest / (brightest + thickness)).clamp(0, 1)


def brightness(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Brightness: raises V of HSV by c = 0.05 … 0.3, to at most 1; a grey image gains exactly c."""
    value = x.amax(1, keepdim=True)
    raised = (value + BRIGHTNESS[severity - 1]).clamp(0, 1)
    lit = x * (raised / value.clamp_min(1e-12))
    return torch.where(value > 0, lit, raised).clamp(0, 1)


def plasma(x: Tensor, fading: float, generator: torch.Generator) -> Tensor:
    """A random height map in [0, 1] for each image of ``x``, (N, 1, H, W), by the diamond-square algorithm.

    On a torus whose side is the next power of two, each round fills the middles of squares, then of edges,
    with the mean of four neighbours plus a uniform draw whose range shrinks by ``fading``² per round.
    """
    size = 1 << (max(x.shape[2:]) - 1).bit_length()
    heights = x.new_zeros(len(x), size, size)
    step, sway = size, 1.0
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        below = corners + corners.roll(-1, 1)
        middles = _plus_draw(below + below.roll(-1, 2), sway, generator)
        heights[:, half::step, half::step] = middles
        # The middle of an edge lies between its two corners and the middles of the squares on both sides.
        upper = corners + corners.roll(-1, 2) + middles + middles.roll(1, 1)
        heights[:, ::step, half::step] = _plus_draw(upper, sway, generator)
        left = corners + corners.roll(-1, 1) + middles + middles.roll(1, 2)
        heights[:, half::step, ::step] = _plus_draw(left, sway, generator)
        step, sway = half, sway / fading**2
    cut = heights[:, : x.shape[2], : x.shape[3]].unsqueeze(1)
    lowest, highest = (per_sample(end) for end in (heights.amin((1, 2)), heights.amax((1, 2))))
    return (cut - lowest) / (highest - lowest)


def _plus_draw(total: Tensor, sway: float, generator: torch.Generator) -> Tensor:
    return total / 4 + uniform(total, generator, -sway, sway)
