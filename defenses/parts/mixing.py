"""How a batch meets the several attacks of a joint stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import evaluation_mode

Mix = Literal["split", "random", "average", "max"]
Craft = Callable[[Attack, Tensor, Tensor], Tensor]


def craft_batch(
    craft: Craft,
    attacks: tuple[Attack, ...],
    x: Tensor,
    y: Tensor,
    *,
    mix: Mix,
    generator: torch.Generator,
    predict: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Adversarial points of a batch, and their labels.

    ``split`` gives each attack an equal share of the batch, ``random`` the whole batch to one attack;
    ``average`` crafts with every attack and keeps all points (arXiv:1904.13000, "avg"), ``max`` keeps for
    each point the one of highest loss (the same paper's "max").

    Returns:
        x_adv (M, C, H, W) and y (M,); M = N, or N·k for ``average``.
    """
    if len(attacks) == 1:
        return craft(attacks[0], x, y), y
    if mix == "random":
        chosen = int(torch.randint(len(attacks), (1,), generator=generator))
        return craft(attacks[chosen], x, y), y
    if mix == "split":
        # Batches come shuffled, so strides are a fair share of each class.
        x_adv = x.clone()
        for number, attack in enumerate(attacks):
            share = slice(number, None, len(attacks))
            x_adv[share] = craft(attack, x[share], y[share])
        return x_adv, y
    crafted = torch.stack([craft(attack, x, y) for attack in attacks])
    if mix == "average":
        return crafted.flatten(0, 1), y.repeat(len(attacks))
    # Choosing is no training: in train mode it would move batch-norm statistics.
    with torch.no_grad(), evaluation_mode(predict):
        losses = torch.stack([F.cross_entropy(predict(points), y, reduction="none") for points in crafted])
    return crafted[losses.argmax(0), torch.arange(len(x), device=x.device)], y
