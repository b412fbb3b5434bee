"""DeepFool, in l2 and linf."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.norms import per_sample, steepest
from attacks_pool.registry import register
from attacks_pool.search.boundary import Smallest, dual_length, length, nearest_plane, rivals

BEYOND = 1e-4
"""Added to each distance, so that a step does not end exactly on the boundary."""


def _cost(knobs: Any, classes: int) -> tuple[int, int]:
    return int(knobs["steps"]) + 2, int(knobs["steps"]) * min(int(knobs["candidates"]) - 1, classes - 1)


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="minimal-norm",
        norm=norm,
        access="white-box",
        kind="minimal-norm",
        paper="1511.04599",
        knobs={
            "steps": metadata.steps(50, training=10),
            "overshoot": Knob(0.02, "overshoot beyond the boundary, as a share of the step", open_low=True),
            "candidates": Knob(10, "number of classes to consider, including the true one", low=2),
        },
        cost=_cost,
    )


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,  # noqa: ARG001 - the search ends at the boundary, at any distance
    steps: int,
    overshoot: float,
    candidates: int,
    generator: torch.Generator,  # noqa: ARG001 - the search is deterministic
    early_stop: bool,  # noqa: ARG001 - each point stops at its first success in any case
) -> Tensor:
    """x_k = clip(x + (1 + overshoot) · Σ r_i), r_i the shortest step to the nearest linearised boundary."""
    found = Smallest(x, norm)
    index = torch.arange(len(x), device=x.device)
    # A nearly flat gradient can put the boundary far outside the box; steps are cut to the box's size.
    longest = length(torch.ones_like(x), norm)
    with torch.no_grad():
        logits = model(x)
    classes, x_adv, total = rivals(logits, y, candidates - 1), x, torch.zeros_like(x)
    for _ in range(steps):
        gap, normal, logits = nearest_plane(model, x_adv, y[index], classes[index], norm)
        going = ~found.record(model, index, x_adv, y[index], logits)
        index, gap, normal, total = index[going], gap[going], normal[going], total[going]
        if not len(index):
            return found.best
        dual = dual_length(normal, norm)
        far = torch.where(dual > 0, gap.abs() / dual.clamp_min(1e-38) + BEYOND, 0.0)
        total = total + per_sample(torch.minimum(far, longest[index])) * steepest(normal, norm)
        x_adv = (x[index] + (1 + overshoot) * total).clamp(0, 1)
    with torch.no_grad():
        found.record(model, index, x_adv, y[index], model(x_adv))
    return found.best


@register(_info("deepfool", "l2"))
def deepfool(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """DeepFool, l2: steps directly to the nearest boundary of the linearised classifier until it is crossed.

    Moosavi-Dezfooli et al., arXiv:1511.04599. It considers only the ``candidates`` likeliest classes (default
    10; the paper considers all). A point ends at its first success. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return _search(model, x, y, norm="l2", **knobs)


@register(_info("deepfool-linf", "linf"))
def deepfool_linf(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """DeepFool, linf: like :func:`deepfool`, with the boundary nearest in linf. arXiv:1511.04599."""
    return _search(model, x, y, norm="linf", **knobs)
