"""Gaussian noise inside the linf ball, drawn independently of the model."""

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import draw_seed, keyed_like, normal
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.norms import project
from attacks_pool.registry import register
from attacks_pool.search.ascent import wrong


@register(
    AttackInfo(
        name="gaussian-noise",
        family="noise",
        norm="linf",
        access="black-box",
        paper=None,
        cost=lambda knobs, _classes: (knobs["restarts"] if knobs["restarts"] > 1 else 0, 0),
        knobs={
            "std": Knob(
                lambda knobs: float(knobs["eps"]),
                "standard deviation before clipping; default: eps",
                open_low=True,
                scales=True,
            ),
            "restarts": metadata.restarts(),
        },
    )
)
def gaussian_noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    std: float,
    restarts: int,
    generator: torch.Generator,
    early_stop: bool,  # noqa: ARG001 - not used, but part of every attack's signature
) -> Tensor:
    """Noise without a gradient: x_adv = clip(x + clip(std · N(0, I), ±eps)); a baseline for every attack.

    Among restarts it keeps each point's first draw that fools the model. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    base = draw_seed(generator)
    result = x
    fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for restart in range(restarts):
        noise = std * normal(x, keyed_like(generator, base, restart))
        drawn = project(x + noise, x, eps, "linf")
        result = torch.where(fooled.view(-1, 1, 1, 1), result, drawn)
        if restarts > 1:
            with torch.no_grad():
                fooled = fooled | wrong(model(drawn), y)
    return result
