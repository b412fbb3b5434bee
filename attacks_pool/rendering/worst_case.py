"""Searches for the worst parameters of a rendering: trying candidates, and gradient ascent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool import metadata
from attacks_pool.losses import cross_entropy
from attacks_pool.metadata import Knob
from attacks_pool.rendering.transforms import Render
from attacks_pool.search.ascent import fooled, input_gradient

PIXELS_AT_ONCE = 2**21
"""Number of values of rendered images per call of the model, unless one candidate already has more."""

MAGNITUDE_KNOBS = {
    "grid": Knob(10, "number of magnitudes of each sign to try first", training=3, low=1),
    "steps": metadata.steps(10, training=3),
    "step_size": Knob(
        lambda knobs: float(knobs["eps"]) / int(knobs["grid"]),
        "length of the first step, decreasing to 0; default: eps / grid",
        open_low=True,
        scales=True,
    ),
}
"""The knobs of :func:`worst_magnitude` besides ``eps``."""


def magnitude_cost(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost of :func:`worst_magnitude`: the grid, then all iterates, the last one without a gradient."""
    return 2 * int(knobs["grid"]) + int(knobs["steps"]) + 1, int(knobs["steps"])


class Worst:
    """The worst image of each point so far: the first that fools the model, or the one of highest loss."""

    def __init__(self, x: Tensor, y: Tensor, parameters: Tensor) -> None:
        self.x, self.y = x, y
        self.x_adv = x.clone()
        self.parameters = parameters.clone()
        self.loss = torch.full((len(x),), -torch.inf, device=x.device)

    @property
    def fooled(self) -> Tensor:
        """(N,) mask of points with an image that fools the model."""
        return self.loss == torch.inf

    def active(self, early_stop: bool) -> Tensor:
        """Indices of the points that are still being searched."""
        everyone = torch.arange(len(self.x), device=self.x.device)
        return everyone[~self.fooled] if early_stop else everyone

    def offer(self, points: Tensor, images: Tensor, parameters: Tensor, loss: Tensor, done: Tensor) -> None:
        """Keep ``images`` that are worse; ``loss`` is their loss, ``done`` whether they fool the model.

        An image whose parameters are all 0 is the clean image and is never kept.
        """
        # Infinity means fooled, so the loss of any other image is kept below it.
        value = torch.nan_to_num(loss.float(), nan=3e38, posinf=3e38)
        value = torch.where(done, torch.inf, value)
        better = (value > self.loss[points]) & parameters.flatten(1).any(1)
        at = points[better]
        self.x_adv[at], self.parameters[at], self.loss[at] = images[better], parameters[better], value[better]


def try_candidates(
    model: nn.Module, render: Render, worst: Worst, candidates: Tensor, early_stop: bool
) -> None:
    """Render each of ``candidates`` (N, K, …), several per batch, and offer the images to ``worst``.

    Results do not depend on the batches, since candidates are compared one by one, in order. With
    ``early_stop``, fooled points get no further candidates.
    """
    at = 0
    while at < candidates.shape[1]:
        points = worst.active(early_stop)
        if not len(points):
            return
        count = max(1, PIXELS_AT_ONCE // (len(points) * worst.x[0].numel()))
        chosen = candidates[points, at : at + count].transpose(0, 1)
        count, at = len(chosen), at + len(chosen)
        x, y = worst.x[points], worst.y[points]
        with torch.no_grad():
            images = render(x.repeat(count, 1, 1, 1), chosen.flatten(0, 1))
            labels = y.repeat(count)
            logits = model(images)
            loss, done = cross_entropy(logits, labels), fooled(model, images, labels, logits)
        parts = (images, loss, done)
        for parameters, *rest in zip(chosen, *(part.chunk(count) for part in parts), strict=True):
            worst.offer(points, rest[0], parameters, rest[1], rest[2])


def climb(
    model: nn.Module,
    render: Render,
    worst: Worst,
    start: Tensor,
    *,
    bound: float,
    steps: int,
    step_size: float,
    shrink: bool,
    early_stop: bool,
) -> None:
    """p_{k+1} = clip(p_k + step_k · sign ∂CE(f(render(x, p_k)), y)/∂p, ±bound) from ``start`` (N, …).

    step_k is ``step_size``, times (1 − k/steps) with ``shrink``. Every iterate is offered to ``worst``, so
    ``steps`` + 1 images are evaluated.
    """
    parameters = start.clone()
    for step in range(steps):
        points = worst.active(early_stop)
        if not len(points):
            return
        here = parameters[points].detach().requires_grad_()
        images = render(worst.x[points], here)
        gradient, logits, loss = input_gradient(model, images, worst.y[points], cross_entropy, boxed=False)
        done = fooled(model, images.detach(), worst.y[points], logits)
        worst.offer(points, images.detach(), here.detach(), loss, done)
        (slope,) = torch.autograd.grad(images, here, gradient)
        length = step_size * (1 - step / steps) if shrink else step_size
        # NaN counts as zero slope.
        move = length * torch.nan_to_num(slope, nan=0.0).sign()
        parameters[points] = (here.detach() + move).clamp(-bound, bound)
    points = worst.active(early_stop)
    if len(points):
        try_last = parameters[points]
        with torch.no_grad():
            images = render(worst.x[points], try_last)
            logits = model(images)
        loss = cross_entropy(logits, worst.y[points])
        worst.offer(points, images, try_last, loss, fooled(model, images, worst.y[points], logits))


def worst_magnitude(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    render: Render,
    *,
    eps: float,
    grid: int,
    steps: int,
    step_size: float,
    generator: torch.Generator,  # noqa: ARG001 - not used, but part of every attack's signature
    early_stop: bool,
) -> Tensor:
    """The worst single parameter in [−eps, eps] of each image (arXiv:2202.04235): a grid, then ascent.

    The grid has ``grid`` equally spaced magnitudes of each sign, without 0 (the clean image). From its worst
    point, ``steps`` signed gradient steps follow, whose length decreases to 0.
    """
    sizes = torch.arange(1, grid + 1, device=x.device, dtype=x.dtype) * (eps / grid)
    candidates = torch.cat([sizes, -sizes]).view(1, -1, 1).expand(len(x), -1, -1)
    worst = Worst(x, y, candidates[:, 0])
    try_candidates(model, render, worst, candidates, early_stop)
    climb(
        model,
        render,
        worst,
        worst.parameters,
        bound=eps,
        steps=steps,
        step_size=step_size,
        shrink=True,
        early_stop=early_stop,
    )
    return worst.x_adv
