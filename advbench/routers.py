"""Whether a router tells attacks apart, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from advbench.cost import multiply_adds
from advbench.data import Split
from attacks_pool import Attack
from attacks_pool.randomness import keyed_generator
from defenses import Defense
from defenses.lowrank import nmi

POINTS = 100
"""Test points, from the first on, that are attacked and routed."""


@runtime_checkable
class Routes(Protocol):
    """A defense that mixes its adapters for each image."""

    def router_weights(self, x: Tensor) -> Tensor:
        """(N, E) weights of the adapters, E = 0 where nothing is mixed."""
        ...

    def merged(self, task: int | Tensor | None) -> nn.Module:
        """The plain network of one adapter, of fixed weights, or of none."""
        ...


def routing(
    defense: Defense,
    data: Split,
    attacks: Sequence[Attack],
    *,
    seed: int,
    device: torch.device | None = None,
) -> dict[str, float | None]:
    """``router_nmi`` and ``router_overhead`` of a defense with a router; nothing of another.

    ``router_nmi`` is the normalised mutual information between the heaviest adapter and the attack, over the
    first 100 test points, clean and after each attack on the defense. ``router_overhead`` is the
    multiply-adds of an image over those of the plain network.

    Args:
        defense: has ``router_weights``, and is in eval mode.
        data: test points.
        attacks: each crafts on every point, as at evaluation, whether or not it was right clean.
        seed: keys every draw.
        device: where ``defense`` is; where ``data`` lie by default.
    """
    assert isinstance(defense, Routes)
    place = device or data.x.device
    x, y = data.x[:POINTS].to(place), data.y[:POINTS].to(place)
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
