"""Data augmentation of a whole batch on its device, with an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks_pool.calling.randomness import drawn, drawn_for
from attacks_pool.errors import InputError, unknown
from defenses.training.recipes import RECIPES

NAMES = ("crop", "flip", *RECIPES)
"""The augmentations of a plan, in the order in which they are applied."""
CROPS = ("crop", "resized-crop", "idbh-weak", "idbh-strong")
POLICIES = ("trivial-augment", "rand-augment", "idbh-weak", "idbh-strong")


def augment(x: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """Shift (``crop``), mirror (``flip``) or change each image of ``x`` (N, C, H, W) by its own random draws.

    ``kinds`` are among ``NAMES``; they are applied in the order of these.
    """
    if "crop" in kinds:
        x = shift(x, max(1, x.shape[-1] // 8), generator)
    if "flip" in kinds:
        mirrored = drawn(torch.rand, (len(x),), generator).to(x.device) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
    for name, recipe in RECIPES.items():
        if name in kinds:
            x = recipe(x, generator)
    return x


def check_kinds(kinds: Sequence[str]) -> None:
    """Reject names that are unknown or that do not go together.

    Raises:
        InputError: a name is not in ``NAMES``, or two of them cut the image or choose among operations.
    """
    for kind in kinds:
        if kind not in NAMES:
            raise unknown("augmentation", kind, NAMES)
    for rivals, what in ((CROPS, "cut the image"), (POLICIES, "are whole recipes")):
        given = [kind for kind in dict.fromkeys(kinds) if kind in rivals]
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} both {what}: give one of them")


def shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``most`` pixels along both axes and fill with zeros."""
    count, channels, height, width = x.shape
    total, mine = drawn_for(generator, x)
    offsets = torch.randint(0, 2 * most + 1, (2, total), generator=generator).to(x.device)[:, mine]
    padded = F.pad(x, (most, most, most, most))
    rows = offsets[0, :, None] + torch.arange(height, device=x.device)
    columns = offsets[1, :, None] + torch.arange(width, device=x.device)
    index = (rows[:, :, None] * (width + 2 * most) + columns[:, None, :]).view(count, 1, -1)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(x.shape)
