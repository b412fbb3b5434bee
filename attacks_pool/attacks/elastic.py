"""Elastic deformation: gradient search for a smooth flow of bounded length."""

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.calling.randomness import draw_seed, keyed_like, uniform
from attacks_pool.metadata import AttackInfo, Knob
from attacks_pool.registry import register
from attacks_pool.rendering.transforms import blur, displace
from attacks_pool.rendering.worst_case import Worst, climb


@register(
    AttackInfo(
        name="elastic",
        family="spatial",
        norm=None,
        access="white-box",
        paper="1905.01034",
        min_side=4,
        cost=lambda knobs, _classes: (
            int(knobs["restarts"]) * (int(knobs["steps"]) + 1),
            int(knobs["restarts"]) * int(knobs["steps"]),
        ),
        knobs={
            "eps": Knob(
                0.05, "largest displacement along an axis, in sides", high=1.0, open_low=True, scales=True
            ),
            "steps": metadata.steps(30, training=7),
            "step_size": metadata.step_size(2.5),
            "restarts": metadata.restarts(),
            "smoothness": Knob(0.06, "standard deviation of the flow's blur, in sides", high=1.0),
        },
    )
)
def elastic(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    restarts: int,
    smoothness: float,
    generator: torch.Generator,
    early_stop: bool,
) -> Tensor:
    """Adversarial elastic flow: u_{k+1} = clip(u_k + step_size · sign ∂CE(f(x ∘ (id + G∗u_k)), y)/∂u, ±eps).

    Kang et al., arXiv:1905.01034, with bilinear sampling as in stAdv (arXiv:1801.02612), which keeps its flow
    smooth by a penalty instead. G is a Gaussian with sum 1, so no pixel moves further than eps · side along
    either axis (side is the shorter one). It starts at a random u and returns the first flow that fools the
    model, or the one of highest loss. Shapes as in :class:`attacks_pool.Attack`.
    """
    side, base = min(x.shape[2:]), draw_seed(generator)

    def render(images: Tensor, u: Tensor) -> Tensor:
        flow = side * blur(u, smoothness * side)
        return displace(images, flow).clamp(0, 1)

    blank = x.new_zeros(len(x), 2, *x.shape[2:])
    worst = Worst(x, y, blank)
    for restart in range(restarts):
        start = eps * uniform(blank, keyed_like(generator, base, restart), -1.0, 1.0)
        climb(
            model,
            render,
            worst,
            start,
            bound=eps,
            steps=steps,
            step_size=step_size,
            shrink=False,
            early_stop=early_stop,
        )
    return worst.x_adv
