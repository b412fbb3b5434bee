"""PGD in the l2 ball."""

import torch
from torch import Tensor, nn

from attacks_pool.attacks.pgd import KNOBS
from attacks_pool.engine import gradient_ascent
from attacks_pool.metadata import AttackInfo
from attacks_pool.registry import register


@register(
    AttackInfo(
        name="pgd-l2",
        family="projected-gradient",
        norm="l2",
        access="white-box",
        paper="1706.06083",
        knobs=KNOBS,
    )
)
def pgd_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    restarts: int,
    random_start: bool,
    loss: str,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """Projected gradient descent, l2: x_{k+1} = Π(x_k + step_size · g/‖g‖₂), g = ∇ CE(f(x_k), y).

    Madry et al., arXiv:1706.06083. Shapes as in :class:`attacks_pool.Attack`.
    """
    return gradient_ascent(
        model,
        x,
        y,
        norm="l2",
        eps=eps,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        random_start=random_start,
        loss=loss,
        generator=generator,
        early_stop=early_stop,
    )
