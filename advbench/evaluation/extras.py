"""Further measurements of some defenses: routing by adapters, and regenerated images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.data import Split
from advbench.models.cost import multiply_adds
from attacks_pool import Attack
from attacks_pool.calling.randomness import keyed_generator
from defenses import Defense
from defenses.parts.lowrank import nmi

POINTS = 100
"""How many test points, from the first on, are attacked and then routed or regenerated."""


@runtime_checkable
class Routes(Protocol):
    """A defense that mixes its adapters for each image."""

    def router_weights(self, x: Tensor) -> Tensor:
        """(N, E) weights of the adapters, with E = 0 if nothing is mixed."""

    def merged(self, task: int | Tensor | None) -> nn.Module:
        """The plain network with one adapter merged, with fixed weights, or without adapters."""


def routing(
    defense: Defense,
    data: Split,
    attacks: Sequence[Attack],
    *,
    seed: int,
    device: torch.device | None = None,
) -> dict[str, float | None]:
    """``router_nmi`` and ``router_overhead`` of a defense with a router; empty for other defenses.

    ``router_nmi`` is the normalised mutual information between the heaviest adapter and the attack, over the
    first 100 test points, clean and after each attack on the defense. ``router_overhead`` is the ratio of
    multiply-adds per image to those of the plain network.

    Args:
        defense: has ``router_weights``, and is in eval mode.
        data: test points.
        attacks: each crafts on every point, as in evaluation, even on misclassified points.
        seed: the key of every draw.
        device: the device of ``defense``; by default that of ``data``.
    """
    assert isinstance(defense, Routes)
    place = device or data.images.device
    x, y = data.images[:POINTS].to(place), data.y[:POINTS].to(place)
    with torch.no_grad():
        weights = [defense.router_weights(x)]
    if weights[0].shape[1] == 0:
        return {}
    for attack in attacks:
        x_adv = attack(defense.view(attack), x, y, generator=keyed_generator("routing", seed, attack.text))
        with torch.no_grad():
            weights.append(defense.router_weights(x_adv))
    labels = torch.arange(len(weights)).repeat_interleave(len(x))
    plain = multiply_adds(defense.merged(None), x[:1])
    return {
        "router_nmi": nmi(torch.cat(weights), labels),
        "router_overhead": multiply_adds(defense.view(None), x[:1]) / plain,
    }


PICTURE = "regenerated.png"
"""The file name of the picture in a run directory."""
SHOWN = 8
"""Of those in the picture."""


@runtime_checkable
class Regenerates(Protocol):
    """A defense that can regenerate images from its features."""

    def regenerate(self, x: Tensor) -> Tensor:
        """Images like ``x`` (N, C, H, W)."""


@dataclass(frozen=True)
class Regenerated:
    """The results of regeneration, over all attacks.

    ``metrics`` are ``regenerated_psnr``, ``regenerated_ssim``, and, with the prefix ``adversarial_``, the
    same for the attacked images themselves; ``picture`` is a PNG.
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
        attacks: each crafts on every point, as in evaluation, even on misclassified points.
        seed: the key of every draw.
        device: the device of ``defense``; by default that of ``data``.
    """
    assert isinstance(defense, Regenerates)
    place = device or data.images.device
    x, y = data.images[:POINTS].to(place), data.y[:POINTS].to(place)
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
    """The peak signal-to-noise ratio in dB, 10·log10(1 / MSE), with the MSE over all images in [0, 1].

    None if all images are equal, since the ratio is then infinite.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = float(peak_signal_noise_ratio(images, clean, data_range=1.0))
    return found if math.isfinite(found) else None


def ssim(images: Tensor, clean: Tensor) -> float:
    """The structural similarity, averaged over images (N, C, H, W) in [0, 1], at most 1.

    Wang's Gaussian window (σ = 1.5, 11 pixels) with reflected borders; the 3×3 mean below 6 pixels a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    small = min(images.shape[2:]) < 6
    found = structural_similarity_index_measure(
        images, clean, data_range=1.0, gaussian_kernel=not small, kernel_size=3
    )
    return float(found if isinstance(found, Tensor) else found[0])


def picture(x: Tensor, names: Sequence[str], crafted: Sequence[Tensor], drawn: Sequence[Tensor]) -> bytes:
    """A PNG with a row of clean images, then rows of attacked images, differences and regenerated images."""
    from leaderboards.pictures import ImageRow, difference, image_grid

    clean = pixels(x[:SHOWN])
    rows = [ImageRow("clean", clean)]
    for name, x_adv, images in zip(names, crafted, drawn, strict=True):
        attacked = pixels(x_adv[:SHOWN])
        rows += [ImageRow(name, attacked), difference("difference", clean, attacked)]
        rows.append(ImageRow("regenerated", pixels(images[:SHOWN].clamp(0, 1))))
    return image_grid(rows, heading="What a defense regenerates of attacked images").render("png", dpi=120)


def pixels(x: Tensor) -> NDArray[np.float32]:
    """Convert images (N, C, H, W) to the layout of pictures, (N, H, W, C)."""
    return x.detach().permute(0, 2, 3, 1).cpu().numpy().astype(np.float32)
