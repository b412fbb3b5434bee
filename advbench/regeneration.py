"""Images that a defense regenerates from attacked ones: how close to the clean ones, in numbers and seen."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from advbench.data import Split
from attacks_pool import Attack
from attacks_pool.randomness import keyed_generator
from defenses import Defense

PICTURE = "regenerated.png"
"""The picture's name in a run directory."""
POINTS = 100
"""Test points, from the first on, that are attacked and regenerated."""
SHOWN = 8
"""Of those in the picture."""


@runtime_checkable
class Regenerates(Protocol):
    """A defense that draws what it understood of an image."""

    def regenerate(self, x: Tensor) -> Tensor:
        """Images like ``x`` (N, C, H, W)."""
        ...


@dataclass(frozen=True)
class Regenerated:
    """What came out, over all attacks.

    ``metrics`` are ``regenerated_psnr``, ``regenerated_ssim``, and ``adversarial_`` the same of the attacked
    images themselves; ``picture`` is a PNG.
    """

    metrics: dict[str, float | None]
    picture: bytes


def regenerate(
    defense: Defense,
    data: Split,
    attacks: Sequence[Attack],
    *,
    seed: int,
    device: torch.device | None = None,
) -> Regenerated:
    """Attack the first 100 points on ``defense``, regenerate them, and compare both with the clean ones.

    Args:
        defense: has ``regenerate``, and is in eval mode.
        data: test points.
        attacks: each crafts on every point, as at evaluation, whether or not it was right clean.
        seed: keys every draw.
        device: where ``defense`` is; where ``data`` lie by default.
    """
    assert isinstance(defense, Regenerates)
    place = device or data.x.device
    x, y = data.x[:POINTS].to(place), data.y[:POINTS].to(place)
    crafted, drawn = [], []
    for attack in attacks:
        draws = keyed_generator("regenerate", seed, attack.text)
        crafted.append(attack(defense.view(attack), x, y, generator=draws))
        with torch.no_grad():
            drawn.append(defense.regenerate(crafted[-1]))
    clean = x.repeat(len(attacks), 1, 1, 1)
    metrics: dict[str, float | None] = {}
    for name, images in (("regenerated", torch.cat(drawn)), ("adversarial", torch.cat(crafted))):
        metrics[f"{name}_psnr"], metrics[f"{name}_ssim"] = psnr(images, clean), ssim(images, clean)
    return Regenerated(metrics, picture(x, [attack.name for attack in attacks], crafted, drawn))


def psnr(images: Tensor, clean: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB, 10·log10(1 / MSE), of the squared error over all images in [0, 1].

    None where all are equal: the ratio is infinite then.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = float(peak_signal_noise_ratio(images, clean, data_range=1.0))
    return found if math.isfinite(found) else None


def ssim(images: Tensor, clean: Tensor) -> float:
    """Structural similarity, mean over images (N, C, H, W) in [0, 1], at most 1.

    Wang's Gaussian window (σ = 1.5, 11 pixels), borders reflected; below 6 pixels a side, the 3×3 mean.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    small = min(images.shape[2:]) < 6
    found = structural_similarity_index_measure(
        images, clean, data_range=1.0, gaussian_kernel=not small, kernel_size=3
    )
    return float(found if isinstance(found, Tensor) else found[0])


def picture(x: Tensor, names: Sequence[str], crafted: Sequence[Tensor], drawn: Sequence[Tensor]) -> bytes:
    """A PNG: a row of clean images, then for each attack the attacked ones, the difference, the regenerated.

    Differences are scaled so that the largest of an attack is black or white, none is grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[tuple[str, Tensor]] = [("clean", x)]
    for name, x_adv, images in zip(names, crafted, drawn, strict=True):
        change = x_adv - x
        scaled = 0.5 + change / (2 * change.abs().max().clamp_min(1e-12))
        rows += [(name, x_adv), ("difference", scaled), ("regenerated", images)]
    columns, (height, width) = min(SHOWN, len(x)), x.shape[2:]
    tiles = torch.cat([images[:columns] for _, images in rows]).detach().clamp(0, 1).cpu()
    # White lines an eighth of an image wide between images.
    gap = max(1, height // 8)
    padded = F.pad(tiles, (0, gap, 0, gap), value=1.0)
    grid = padded.view(len(rows), columns, -1, height + gap, width + gap).permute(0, 3, 1, 4, 2).flatten(2, 3)
    shown = grid.flatten(0, 1)[:-gap, :-gap].numpy()
    figure = Figure(figsize=(0.9 * columns + 1.2, 0.9 * len(rows) * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if shown.shape[2] == 3:
        axes.imshow(shown, interpolation="nearest")
    else:
        axes.imshow(shown[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    middles = [(height + gap) * row + height / 2 - 0.5 for row in range(len(rows))]
    axes.set(xticks=[], yticks=middles, yticklabels=[name for name, _ in rows])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
