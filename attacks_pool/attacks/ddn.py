"""DDN: an l2 attack that decouples the perturbation's direction and norm."""

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import cross_entropy
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.norms import l2_norm, per_sample, steepest
from attacks_pool.registry import register
from attacks_pool.search.boundary import Walk, adaptive_descent, cosine, passes


@register(
    AttackInfo(
        name="ddn",
        family="minimal-norm",
        norm="l2",
        access="white-box",
        kind="minimal-norm",
        paper="1811.09600",
        knobs={
            "steps": metadata.steps(100, training=10),
            "step_size": Knob(1.0, "first step, in image units; the last is 1/100 of it", open_low=True),
            "gamma": Knob(0.05, "share by which the radius grows or shrinks", high=1.0, open_low=True),
            "init_radius": Knob(1.0, "initial radius", open_low=True),
        },
        cost=passes,
    )
)
def ddn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    gamma: float,
    init_radius: float,
    generator: torch.Generator,  # noqa: ARG001 - the search is deterministic
    early_stop: bool,
) -> Tensor:
    """Decoupled direction and norm, l2: unit gradient steps, each projected onto a sphere.

    Rony et al., arXiv:1811.09600. The radius of the sphere is multiplied by (1 − γ) after a success and by
    (1 + γ) after a failure; steps along ∇CE with cosine annealing. Iterates are not rounded to 8 bits.
    Shapes as in :class:`attacks_pool.Attack`.
    """

    def move(walk: Walk, step: int) -> Tensor:
        walk.radius = walk.radius * torch.where(walk.success, 1 - gamma, 1 + gamma)
        length = cosine(step_size, step_size / 100, step, steps)
        delta = walk.x_adv - walk.x + length * steepest(walk.gradient, "l2")
        delta = delta * (per_sample(walk.radius) / l2_norm(delta).clamp_min(1e-12))
        return (walk.x + delta).clamp(0, 1)

    enough = eps if early_stop else None
    return adaptive_descent(
        model, x, y, move, norm="l2", loss=cross_entropy, radius=init_radius, steps=steps, enough=enough
    )
