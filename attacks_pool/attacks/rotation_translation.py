"""Rotations and translations: the worst of a grid, or of a few random ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.randomness import draw_seed, keyed_like, uniform
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.rendering.transforms import rotate_and_shift
from attacks_pool.rendering.worst_case import Worst, try_candidates

DEGREES, SHARE = 30.0, 0.1
"""At eps 1: the largest rotation in degrees, and the largest translation as a share of the side."""


def tried(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost: one forward pass per transformation, no backward pass."""
    if knobs["search"] == "random":
        return int(knobs["draws"]), 0
    return grid(int(knobs["angles"]), int(knobs["shifts"])).shape[1], 0


@register(
    AttackInfo(
        name="rotation-translation",
        family="spatial",
        norm=None,
        access="black-box",
        paper="1712.02779",
        min_side=2,
        cost=tried,
        knobs={
            "eps": Knob(
                1.0, "factor of 30 degrees and of a tenth of the side", high=1.0, open_low=True, scales=True
            ),
            "search": Knob("grid", "transformations to try", training="random", choices=("grid", "random")),
            "angles": Knob(31, "number of angles in the grid", low=1),
            "shifts": Knob(5, "number of translations in the grid, per axis", low=1),
            "draws": Knob(10, "number of random transformations per point", low=1),
        },
    )
)
def rotation_translation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    search: str,
    angles: int,
    shifts: int,
    draws: int,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """Worst of many rotations and translations: argmax_p CE(f(T_p(x)), y), p = (angle, dx, dy).

    Engstrom et al., arXiv:1712.02779: angles up to eps · 30 degrees about the centre, then translations up to
    eps · 10 % of the side, bilinear, black outside. It returns the first transformation that fools the model,
    or the one of highest loss, and uses only logits. ``grid`` tries ``angles`` × ``shifts`` × ``shifts``
    transformations except the identity; ``random`` tries ``draws``. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    if search == "grid":
        candidates = grid(angles, shifts).to(x.device).expand(len(x), -1, -1)
    else:
        like = x.new_empty(len(x), draws, 3)
        candidates = uniform(like, keyed_like(generator, draw_seed(generator)), -1.0, 1.0)
    height, width = x.shape[2:]
    largest = torch.tensor([DEGREES, SHARE * width, SHARE * height], device=x.device)
    candidates = candidates * (eps * largest)
    worst = Worst(x, y, candidates[:, 0])
    try_candidates(model, rotate_and_shift, worst, candidates, early_stop)
    return worst.x_adv


def grid(angles: int, shifts: int) -> Tensor:
    """(1, K, 3) shares in [−1, 1] of the largest angle, dx and dy, without the identity.

    If ``angles`` or ``shifts`` is 1, the only value is 0.
    """
    turn, move = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (angles, shifts))
    every = torch.cartesian_prod(turn, move, move)
    kept = every[(every.abs() > 1e-6).any(1)]
    return (kept if len(kept) else every)[None]
