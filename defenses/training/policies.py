"""Recipes that change each image by randomly drawn operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks_pool.calling.randomness import drawn
from defenses.training import operations as do
from defenses.training.operations import Operation, perform

BINS = 31
"""Strengths of an operation that TrivialAugment and RandAugment choose from."""
LEVEL = 9
"""The strength that RandAugment uses, from 0 to 30."""


@dataclass(frozen=True)
class Choice:
    """An operation and its strengths: ``of`` maps shares in [0, 1], of any shape, to strengths.

    A ``signed`` strength is negated for half of the images. ``offset`` is added last: factors are 1 ± s.
    """

    operation: Operation
    of: Callable[[Tensor], Tensor]
    signed: bool = False
    offset: float = 0.0


def trivial_choices(side: int) -> dict[str, Choice]:
    """The operations of TrivialAugment; at most the ``side`` of the image, in pixels, is shifted."""
    return _choices(slope=0.99, pixels=min(32.0, side), degrees=135.0, factor=0.99, bits=6)


def rand_choices(side: int) -> dict[str, Choice]:
    """The operations of RandAugment, milder than those of TrivialAugment."""
    return _choices(slope=0.3, pixels=150 / 331 * side, degrees=30.0, factor=0.9, bits=4)


def _choices(*, slope: float, pixels: float, degrees: float, factor: float, bits: int) -> dict[str, Choice]:
    def up_to(most: float) -> Callable[[Tensor], Tensor]:
        return lambda share: share * most

    factors = {
        name: Choice(operation, up_to(factor), signed=True, offset=1.0)
        for name, operation in (
            ("brightness", do.brightness),
            ("saturation", do.saturation),
            ("contrast", do.contrast),
            ("sharpness", do.sharpness),
        )
    }
    return {
        "unchanged": Choice(do.unchanged, up_to(0.0)),
        "shear-x": Choice(do.shear_x, up_to(slope), signed=True),
        "shear-y": Choice(do.shear_y, up_to(slope), signed=True),
        "translate-x": Choice(do.translate_x, up_to(pixels), signed=True),
        "translate-y": Choice(do.translate_y, up_to(pixels), signed=True),
        "rotate": Choice(do.rotate, up_to(degrees), signed=True),
        **factors,
        "posterize": Choice(do.posterize, lambda share: 8 - (share * bits).round()),
        "solarize": Choice(do.solarize, lambda share: 1 - share),
        "autocontrast": Choice(do.autocontrast, up_to(0.0)),
        "equalize": Choice(do.equalize, up_to(0.0)),
    }


def trivial_augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """One of 14 operations at one of 31 strengths, both uniform (TrivialAugment Wide, arXiv:2103.10158)."""
    draws = drawn(torch.rand, (len(x), 3), generator).to(x.device)
    share = (draws[:, 1] * BINS).floor() / (BINS - 1)
    return chosen_by(x, trivial_choices(min(x.shape[2:])), draws[:, 0], share, draws[:, 2])


def rand_augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Two of 14 operations in a row at 9 of 30 of their strength (RandAugment, arXiv:1909.13719)."""
    draws = drawn(torch.rand, (len(x), 4), generator).to(x.device)
    share = torch.full((len(x),), LEVEL / (BINS - 1), device=x.device)
    for number in (0, 2):
        choices = rand_choices(min(x.shape[2:]))
        x = chosen_by(x, choices, draws[:, number], share, draws[:, number + 1])
    return x


COLOUR_AND_SHAPE = {
    "saturation": Choice(do.saturation, lambda share: 0.1 + 1.8 * share),
    "brightness": Choice(do.brightness, lambda share: 0.5 + 1.4 * share),
    "contrast": Choice(do.contrast, lambda share: 0.5 + 1.4 * share),
    "sharpness": Choice(do.sharpness, lambda share: 0.1 + 1.8 * share),
    "autocontrast": Choice(do.autocontrast, lambda share: share),
    "equalize": Choice(do.equalize, lambda share: share),
    # Each axis has half the chance of the other operations, see colour_and_shape.
    "shear-x": Choice(do.centred_shear_x, lambda share: (0.05 + 0.1 * share).tan(), signed=True),
    "shear-y": Choice(do.centred_shear_y, lambda share: (0.05 + 0.1 * share).tan(), signed=True),
    "rotate": Choice(do.rotate, lambda share: 1 + (10 * share).floor().clamp(max=9), signed=True),
}
"""The operations of IDBH (arXiv:2301.09879) for CIFAR-10."""


def colour_and_shape(x: Tensor, generator: torch.Generator) -> Tensor:
    """One of eight operations, uniformly: four factors, autocontrast, equalize, a shear or a rotation."""
    draws = drawn(torch.rand, (len(x), 3), generator).to(x.device)
    sixteenths = (draws[:, 0] * 16).floor()
    place = (sixteenths / 2).floor()
    number = torch.where(place < 6, place, torch.where(place == 6, sixteenths - 6, 8))
    return chosen_by(x, COLOUR_AND_SHAPE, (number + 0.5) / len(COLOUR_AND_SHAPE), draws[:, 1], draws[:, 2])


def chosen_by(x: Tensor, choices: Mapping[str, Choice], which: Tensor, share: Tensor, sign: Tensor) -> Tensor:
    """Change each image by one of ``choices``; ``which``, ``share`` and ``sign`` (N,) are in [0, 1].

    ``which`` is the place among the choices, ``share`` goes to the choice's strengths, and a signed strength
    is negated where ``sign`` is below a half.
    """
    chosen = (which * len(choices)).long().clamp(max=len(choices) - 1)
    strengths = []
    for choice in choices.values():
        strength = choice.of(share)
        if choice.signed:
            strength = torch.where(sign < 0.5, -strength, strength)
        strengths.append(strength + choice.offset)
    strength = torch.stack(strengths).gather(0, chosen[None])[0]
    return perform(x, {name: choice.operation for name, choice in choices.items()}, chosen, strength)
