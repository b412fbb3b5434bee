"""FMN, in linf, l2, l1 and l0."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import margin
from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.norms import l2_norm, per_sample, steepest
from attacks_pool.registry import register
from attacks_pool.search.boundary import DUAL, Walk, adaptive_descent, cosine, length, passes

LAST_GAMMA = 0.001


def _info(name: str, norm: Norm) -> AttackInfo:
    return AttackInfo(
        name=name,
        family="minimal-norm",
        norm=norm,
        access="white-box",
        kind="minimal-norm",
        paper="2102.12827",
        knobs={
            "steps": metadata.steps(100, training=10),
            "step_size": Knob(1.0, "first step, in l2; the last is 1/100 of it", open_low=True),
            "gamma": Knob(0.05, "first share by which the radius grows or shrinks", high=1.0, open_low=True),
        },
        cost=passes,
    )


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    step_size: float,
    gamma: float,
    generator: torch.Generator,  # noqa: ARG001 - the search is deterministic
    early_stop: bool,
) -> Tensor:
    """Take unit gradient steps of the margin, projected onto a ball with an adaptive radius per point."""
    widest = length(torch.maximum(x, 1 - x), norm)

    def move(walk: Walk, step: int) -> Tensor:
        share = cosine(gamma, LAST_GAMMA, step, steps)
        radius = _count(walk, share) if norm == "l0" else _radius(walk, share, norm)
        walk.radius = torch.minimum(radius, widest[walk.index])
        stride = cosine(step_size, step_size / 100, step, steps)
        delta = walk.x_adv - walk.x + stride * steepest(walk.gradient, "l2")
        return (walk.x + into_ball(delta, walk.radius, norm)).clamp(0, 1)

    first, enough = 1.0 if norm == "l0" else torch.inf, eps if early_stop else None
    return adaptive_descent(
        model, x, y, move, norm=norm, loss=margin, radius=first, steps=steps, enough=enough
    )


def _radius(walk: Walk, gamma: float, norm: str) -> Tensor:
    """Decrease the radius after a success, else increase it; before any success, use the linearised distance.

    That distance may stop growing before the boundary, so the radius grows by its share in any case.
    """
    dual = length(walk.gradient, DUAL[norm]).clamp_min(1e-12)
    guess = length(walk.x_adv - walk.x, norm) + torch.nan_to_num(walk.loss).abs() / dual
    less = torch.minimum(walk.radius * (1 - gamma), walk.best)
    more = walk.radius * (1 + gamma)
    # At the first step the radius is infinite.
    first = torch.where(torch.isinf(more), guess, torch.maximum(more, guess))
    return torch.where(walk.success, less, torch.where(walk.crossed, more, first))


def _count(walk: Walk, gamma: float) -> Tensor:
    """The l0 radius, a number of pixels; it changes by at least one and is at least one."""
    less = torch.minimum(torch.minimum(walk.radius - 1, (walk.radius * (1 - gamma)).floor()), walk.best)
    more = torch.maximum(walk.radius + 1, (walk.radius * (1 + gamma)).floor())
    return torch.where(walk.success, less, more).clamp_min(1)


def into_ball(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The point nearest in l2 to ``delta`` (N, C, H, W) with norm at most ``radius`` (N,)."""
    limit = per_sample(radius)
    if norm == "linf":
        return delta.clamp(-limit, limit)
    if norm == "l2":
        return delta * (limit / l2_norm(delta).clamp_min(1e-12)).clamp_max(1.0)
    if norm == "l0":
        rank = delta.square().sum(1).flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
        return delta * (rank < radius[:, None]).view(len(delta), 1, *delta.shape[2:])
    size = delta.flatten(1).abs()
    ranked = size.sort(dim=1, descending=True).values
    places = torch.arange(1, size.shape[1] + 1, device=delta.device)
    excess = (ranked.cumsum(1) - radius[:, None]) / places
    # The soft threshold is the excess at the last rank whose value stays above zero.
    last = (ranked > excess).sum(1, keepdim=True).clamp_min(1) - 1
    threshold = excess.gather(1, last).clamp_min(0)
    return delta.sign() * (size - threshold).clamp_min(0).view_as(delta)


@register(_info("fmn", "linf"))
def fmn(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FMN, linf: unit gradient steps inside a ball that shrinks after a success and grows after a failure.

    Pintor et al., arXiv:2102.12827; it starts at the clean point. Before the first success the ball reaches
    the linearised boundary and, unlike the paper's, never shrinks. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _search(model, x, y, norm="linf", **knobs)


@register(_info("fmn-l2", "l2"))
def fmn_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FMN, l2: like :func:`fmn`. arXiv:2102.12827."""
    return _search(model, x, y, norm="l2", **knobs)


@register(_info("fmn-l1", "l1"))
def fmn_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FMN, l1: like :func:`fmn`. arXiv:2102.12827."""
    return _search(model, x, y, norm="l1", **knobs)


@register(_info("fmn-l0", "l0"))
def fmn_l0(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FMN, l0: like :func:`fmn`, with a ball of whole pixels. arXiv:2102.12827."""
    return _search(model, x, y, norm="l0", **knobs)
