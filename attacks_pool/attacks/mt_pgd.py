"""Multi-targeted PGD in the linf, l2 and l1 balls."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.attacks.pgd import L1_KNOBS, sparse_direction
from attacks_pool.losses import margin
from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.registry import register
from attacks_pool.search.ascent import Ways, fooled, gradient_ascent

KNOBS = {
    "steps": metadata.steps(50, training=7),
    "step_size": metadata.step_size(2.5),
    "restarts": metadata.restarts(),
    "random_start": Knob(True, "start at a random point of the ball"),
    "targets": Knob(9, "number of classes to aim at, or all others if fewer", training=3, low=1),
}


def _cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:
    """The clean logits, then for each target the gradient search and a forward pass of its result."""
    forwards, backwards = metadata.gradient_steps(knobs, classes)
    attempts = min(int(knobs["targets"]), classes - 1)
    return 1 + attempts * (forwards + 1), attempts * backwards


def _info(name: str, norm: Norm, **more: Knob) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="projected-gradient",
        norm=norm,
        access="white-box",
        paper="1910.09338",
        reduced_precision=True,
        cost=_cost,
        knobs={**KNOBS, **more},
    )


@register(_info("mt-pgd", "linf"))
def mt_pgd(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Multi-targeted PGD, linf: PGD on z_t − z_y for each likely other class t; the strongest result counts.

    Gowal et al., arXiv:1910.09338, for the ``targets`` classes of highest clean logits, all in one batch. It
    returns an attempt that fools the model, or the one of largest margin. With ``early_stop``, one success
    ends the other attempts at its point. Shapes as in :class:`attacks_pool.Attack`.
    """
    return multi_targeted(model, x, y, norm="linf", **knobs)


@register(_info("mt-pgd-l2", "l2"))
def mt_pgd_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """Multi-targeted PGD, l2: PGD on z_t − z_y for each likely other class t; the strongest result counts.

    Gowal et al., arXiv:1910.09338; see ``mt-pgd``. Shapes as in :class:`attacks_pool.Attack`.
    """
    return multi_targeted(model, x, y, norm="l2", **knobs)


@register(_info("mt-pgd-l1", "l1", **{knob: L1_KNOBS[knob] for knob in L1_KNOBS if knob != "loss"}))
def mt_pgd_l1(model: nn.Module, x: Tensor, y: Tensor, *, sparsity: float, **knobs: Any) -> Tensor:
    """Multi-targeted PGD, l1: sparse PGD on z_t − z_y for each likely other class t.

    Gowal et al., arXiv:1910.09338, with the steps of ``pgd-l1``; see ``mt-pgd``. Shapes as in
    :class:`attacks_pool.Attack`.
    """
    return multi_targeted(model, x, y, norm="l1", sparsity=sparsity, **knobs)


def multi_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    targets: int,
    sparsity: float | None = None,
    **knobs: Any,
) -> Tensor:
    """Search all targets of all points in one batch; return x_adv like ``x``, the best row of each point."""
    aims = likeliest_others(model, x, y, targets)
    attempts = aims.shape[1]
    points = torch.arange(len(x), device=x.device).repeat_interleave(attempts)
    labels, aimed = y[points], aims.flatten()

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        true, wanted = labels[rows][:, None], aimed[rows][:, None]
        return (logits.gather(1, wanted) - logits.gather(1, true)).squeeze(1).float()

    ways = Ways(
        objective=objective,
        direction=None if sparsity is None else sparse_direction(sparsity),
        groups=points,
    )
    found = gradient_ascent(model, x[points], labels, ways=ways, **knobs)
    with torch.no_grad():
        logits = model(found)
    gap = torch.nan_to_num(margin(logits, labels), nan=torch.inf)
    gap = torch.where(fooled(model, found, labels, logits), torch.inf, gap)
    best = gap.view(-1, attempts).argmax(1)
    return found.view(len(x), attempts, *x.shape[1:])[torch.arange(len(x), device=x.device), best]


def likeliest_others(model: nn.Module, x: Tensor, y: Tensor, targets: int) -> Tensor:
    """(N, T) the classes of highest clean logits other than ``y``, T = min(targets, classes − 1)."""
    with torch.no_grad():
        logits = model(x).float()
    # Make logits finite, so that only y has the lowest one.
    logits = torch.nan_to_num(logits, nan=0.0).scatter(1, y[:, None], -torch.inf)
    return logits.topk(min(targets, logits.shape[1] - 1), dim=1).indices
