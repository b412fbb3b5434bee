"""FAB, untargeted and targeted, in linf, l2 and l1."""

from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.metadata import AttackInfo, Knob, Norm
from attacks_pool.registry import register
from attacks_pool.search.fab import BoundarySearch, passes


def _info(name: str, norm: Norm, *, with_targets: bool) -> AttackInfo:
    knobs = {
        "steps": metadata.steps(100, training=10),
        "restarts": metadata.restarts(),
        "alpha_max": Knob(0.1, "largest weight of the step from the clean point", high=1.0),
        "eta": Knob(1.05, "overshoot beyond the boundary, as a factor of the step", low=1.0),
        "beta": Knob(0.9, "factor of a perturbation after a success", high=1.0, open_low=True),
    }
    if with_targets:
        knobs["targets"] = Knob(9, "number of likeliest other classes to try", training=1, low=1)
    return AttackInfo(
        name=name,
        family="minimal-norm",
        norm=norm,
        access="white-box",
        kind="minimal-norm",
        paper="1907.02044",
        knobs=knobs,
        cost=passes,
    )


def _fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    restarts: int,
    alpha_max: float,
    eta: float,
    beta: float,
    generator: torch.Generator,
    early_stop: bool,
    targets: int | None = None,
) -> Tensor:
    search = BoundarySearch(norm, eps, alpha_max, eta, beta)
    return search.run(
        model,
        x,
        y,
        steps=steps,
        restarts=restarts,
        targets=targets,
        generator=generator,
        early_stop=early_stop,
    )


@register(_info("fab", "linf", with_targets=False))
def fab(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FAB, linf: steps to the nearest linearised boundary inside [0, 1], biased towards the clean point.

    Croce and Hein, arXiv:1907.02044. Untargeted: each gradient costs K − 1 backward passes. The first restart
    starts at the clean point, the others eps/2 away from it. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _fab(model, x, y, norm="linf", **knobs)


@register(_info("fab-l2", "l2", with_targets=False))
def fab_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FAB, l2: like :func:`fab`, with the boundary nearest in l2. arXiv:1907.02044."""
    return _fab(model, x, y, norm="l2", **knobs)


@register(_info("fab-l1", "l1", with_targets=False))
def fab_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FAB, l1: like :func:`fab`, with the boundary nearest in l1. arXiv:1907.02044."""
    return _fab(model, x, y, norm="l1", **knobs)


@register(_info("fab-t", "linf", with_targets=True))
def fab_t(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FAB-T, linf: FAB towards each of the ``targets`` likeliest other classes separately.

    Croce and Hein, arXiv:1907.02044; the version in AutoAttack (arXiv:2003.01690). A gradient costs one
    backward pass for any number of classes. Shapes as in :class:`attacks_pool.Attack`.
    """
    return _fab(model, x, y, norm="linf", **knobs)


@register(_info("fab-t-l2", "l2", with_targets=True))
def fab_t_l2(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FAB-T, l2: like :func:`fab_t`. arXiv:1907.02044."""
    return _fab(model, x, y, norm="l2", **knobs)


@register(_info("fab-t-l1", "l1", with_targets=True))
def fab_t_l1(model: nn.Module, x: Tensor, y: Tensor, **knobs: Any) -> Tensor:
    """FAB-T, l1: like :func:`fab_t`. arXiv:1907.02044."""
    return _fab(model, x, y, norm="l1", **knobs)
