"""Ways to combine the attacks of a joint stage in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import strided

Mix = Literal["split", "random", "average", "max"]
One = TypeVar("One", Attack, Attack | None)
"""An attack, or for defenses that also train on clean images, None for these."""


def craft_batch(
    craft: Callable[[One, Tensor, Tensor], Tensor],
    attacks: tuple[One, ...],
    x: Tensor,
    y: Tensor,
    *,
    mix: Mix,
    generator: torch.Generator,
    predict: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Craft the adversarial points of a batch, and return them with their labels.

    ``split`` uses each attack on an equal share of the batch, ``random`` one attack on the whole batch;
    ``average`` uses every attack and keeps all points (arXiv:1904.13000, "avg"), ``max`` keeps the result of
    highest loss for each point (the same paper's "max").

    Returns:
        x_adv (M, C, H, W) and y (M,); M = N, or N·k for ``average``.
    """
    if len(attacks) == 1:
        return craft(attacks[0], x, y), y
    if mix == "random":
        chosen = int(torch.randint(len(attacks), (1,), generator=generator))
        return craft(attacks[chosen], x, y), y
    if mix == "split":
        # Batches are shuffled, so strided shares have a fair share of each class.
        x_adv = x.clone()
        for number, attack in enumerate(attacks):
            with strided(generator, x, len(attacks), number) as share:
                x_adv[share] = craft(attack, x[share], y[share])
        return x_adv, y
    crafted = torch.stack([craft(attack, x, y) for attack in attacks])
    if mix == "average":
        return crafted.flatten(0, 1), y.repeat(len(attacks))
    # Eval mode, because train mode would change batch-norm statistics.
    with torch.no_grad(), evaluation_mode(predict):
        losses = torch.stack([F.cross_entropy(predict(points), y, reduction="none") for points in crafted])
    return crafted[losses.argmax(0), torch.arange(len(x), device=x.device)], y
