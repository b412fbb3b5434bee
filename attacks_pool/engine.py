"""The one search that every budgeted gradient attack shares: projected gradient ascent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks_pool.losses import LOSSES, Loss
from attacks_pool.norms import project, random_point, steepest
from attacks_pool.randomness import draw_seed, keyed_generator
from attacks_pool.search import SearchModel


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the summed loss at ``x``, the logits there, and the loss of each sample.

    Samples do not meet in a sum of per-sample losses, so none touches another's gradient. A model that
    passes no gradient back, or one that is not a number, counts as flat.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    values = loss(logits, y)
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
    else:
        gradient = None
    if gradient is None:
        gradient = torch.zeros_like(x)
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0), logits.detach(), values.detach()


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where the prediction is not ``y``; logits that are not numbers count as wrong."""
    return (logits.argmax(1) != y) | ~torch.isfinite(logits).all(1)


def fooled(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    """Where ``x`` fools the model for certain: what a search at reduced precision believes is checked.

    ``logits`` are what ``model`` said of ``x``. A search may freeze only such points.
    """
    believed = wrong(logits, y)
    if isinstance(model, SearchModel) and bool(believed.any()):
        believed = believed.clone()
        believed[believed.clone()] = wrong(model.exact_logits(x[believed]), y[believed])
    return believed


def gradient_ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    step_size: float,
    generator: torch.Generator,
    restarts: int = 1,
    random_start: bool = False,
    decay: float | None = None,
    loss: str = "ce",
    early_stop: bool = False,
) -> Tensor:
    """x_{k+1} = Π(x_k + step_size · d_k), d_k the steepest direction of ∇ loss(f(x_k), y), Π onto the ball.

    With ``decay`` μ the direction is that of the velocity v_k = μ·v_{k−1} + ∇/‖∇‖₁ (arXiv:1710.06081).
    Of several restarts a point keeps the first that fools the model, else the one with the highest loss.
    ``early_stop`` freezes a point at the first iterate that fools the model and searches it no further.

    Returns:
        x_adv like ``x`` (N, C, H, W).
    """
    objective, base = LOSSES[loss], draw_seed(generator)
    best = x.clone()
    best_loss = torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        draws = keyed_generator(base, restart)
        start = random_point(x, eps, norm, draws) if random_start else x
        found, done = _ascend(
            model,
            x[active],
            y[active],
            start[active],
            norm,
            eps,
            steps,
            step_size,
            decay,
            objective,
            early_stop,
        )
        if restarts == 1:
            best[active] = found
            return best
        with torch.no_grad():
            logits = model(found)
        done = done | fooled(model, found, y[active], logits)
        value = torch.where(done, torch.inf, torch.nan_to_num(objective(logits, y[active]), nan=torch.inf))
        better = value > best_loss[active]
        best[active[better]], best_loss[active[better]] = found[better], value[better]
        if early_stop:
            active = active[~done]
            if not len(active):
                break
    return best


def _ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    norm: str,
    eps: float,
    steps: int,
    step_size: float,
    decay: float | None,
    loss: Loss,
    early_stop: bool,
) -> tuple[Tensor, Tensor]:
    """One run from ``x_adv``: the last iterate of each point (the first fooling one with ``early_stop``)."""
    result = x_adv.clone()
    succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        gradient, logits, _values = input_gradient(model, x_adv, y, loss)
        if early_stop:
            done = fooled(model, x_adv, y, logits)
            if done.any():
                result[active[done]], succeeded[active[done]] = x_adv[done], True
                keep = ~done
                active, x, y, x_adv = active[keep], x[keep], y[keep], x_adv[keep]
                gradient, velocity = gradient[keep], velocity[keep]
            if not len(active):
                return result, succeeded
        if decay is not None:
            scale = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
            velocity = decay * velocity + gradient / scale.clamp_min(1e-38)
            gradient = velocity
        x_adv = project(x_adv + step_size * steepest(gradient, norm), x, eps, norm)
    result[active] = x_adv
    return result, succeeded
