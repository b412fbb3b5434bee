"""Certificates for the points of a data set: which are right, which are proved, and how."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from advbench.data import Split
from advbench.evaluation.certificates.proving import METHODS, Prover, check_ball
from advbench.evaluation.certificates.smoothing import Smoothing, radius_needed, smoothed
from attacks_pool.calling.guard import evaluation_mode, ordinary_mode
from attacks_pool.calling.logits import ask
from attacks_pool.errors import InputError, unknown
from attacks_pool.verifier import ABSOLUTE_SLACK, RELATIVE_SLACK

SMOOTHING = "smoothing"
CHOICES = (*METHODS, SMOOTHING)
Told = Callable[[int, int], None]


@dataclass
class Certified:
    """The outcome for each of n points.

    Attributes:
        norm: the norm of the ball.
        eps: its radius, in the units of the images.
        method: what was asked for, one of :data:`CHOICES`.
        clean: whether the point is classified correctly without any change.
        proved: whether it is also proved that no image in the ball is classified otherwise.
        margin: the proved lower bound of the smallest margin; for smoothing, the certified l2 radius minus
            the one that the ball needs. None for points that are wrong, and where there is no bound.
        by: the tightest method used on the point; None for points that are wrong.
        seconds: how long it took.
        smoothing: noise and draws, if the certificates are of the smoothed classifier.
    """

    norm: str
    eps: float
    method: str
    clean: list[bool] = field(default_factory=list)
    proved: list[bool] = field(default_factory=list)
    margin: list[float | None] = field(default_factory=list)
    by: list[str | None] = field(default_factory=list)
    seconds: float = 0.0
    smoothing: Smoothing | None = None

    def counts(self) -> dict[str, int]:
        """The number of points, of those that are right, and of those that are also proved."""
        return {"points": len(self.clean), "clean_correct": sum(self.clean), "certified": sum(self.proved)}

    def _add(self, right: bool, proved: bool, margin: float, by: str) -> None:
        self.clean.append(right)
        self.proved.append(right and proved)
        self.margin.append(margin if right and math.isfinite(margin) else None)
        self.by.append(by if right else None)


def accepted_radius(eps: float) -> float:
    """The radius of the ball of all perturbations that the verifier accepts for ``eps``."""
    return eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK


def certify_points(
    model: nn.Module,
    data: Split,
    *,
    norm: str,
    eps: float,
    method: str = "auto",
    smoothing: Smoothing | None = None,
    told: Told | None = None,
) -> Certified:
    """For each point, a proof that every image within ``eps`` is classified correctly, or none.

    Points are right or wrong as the evaluation has them: by the model's own logits in float32. A proof covers
    every perturbation that the verifier accepts, which allows for the rounding of attacks.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        data: the points.
        norm: linf, l2 or l1.
        eps: the radius of the ball, in the units of the images.
        method: ``ibp``, ``crown``, ``alpha-crown``, ``auto`` or ``smoothing``.
        smoothing: the noise for the method ``smoothing``.
        told: called with the number of points done and proved.

    Raises:
        InputError: an unknown norm or method, an eps out of range, or a model that has no bounds.
    """
    check_ball(norm, eps)
    if method not in CHOICES:
        raise unknown("method", method, CHOICES)
    began = time.perf_counter()
    found = Certified(norm, eps, method)
    if method == SMOOTHING:
        if smoothing is None:
            raise InputError("smoothing needs the deviation of its noise")
        found.smoothing = smoothing
        _smoothed_points(model, data, found, told)
    else:
        _bounded_points(model, data, found, told)
    found.seconds = time.perf_counter() - began
    return found


def _bounded_points(model: nn.Module, data: Split, found: Certified, told: Told | None) -> None:
    prover = Prover(model, data.shape)
    radius = accepted_radius(found.eps)
    for start in range(0, len(data), prover.at_once):
        part = data.take(slice(start, min(start + prover.at_once, len(data))))
        x, y = part.x.to(prover.device), part.y.to(prover.device)
        right = _predicted(model, x) == y
        lower, proved, by = [-math.inf] * len(x), [False] * len(x), [""] * len(x)
        chosen = right.nonzero()[:, 0]
        if len(chosen):
            margins = prover.margins(
                x[chosen],
                y[chosen],
                norm=found.norm,
                eps=radius,
                method=found.method,
                until_proved=True,
            )
            least, sure = margins.least.tolist(), margins.proved.tolist()
            for number, point in enumerate(chosen.tolist()):
                lower[point], proved[point], by[point] = least[number], sure[number], margins.method[number]
        for values in zip(right.tolist(), proved, lower, by, strict=True):
            found._add(*values)
        if told is not None:
            told(len(found.clean), sum(found.proved))


def _smoothed_points(model: nn.Module, data: Split, found: Certified, told: Told | None) -> None:
    assert found.smoothing is not None
    place = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    needed = radius_needed(found.norm, accepted_radius(found.eps), math.prod(data.shape))
    for point in range(len(data)):
        image = data.take(slice(point, point + 1))
        answer = smoothed(model, image.x[0].to(place), found.smoothing, key=point)
        # A point is right if the smoothed classifier says so; it counts as wrong if that abstains.
        right = answer.answer == int(image.y[0])
        found._add(right, answer.radius > needed, answer.radius - needed, SMOOTHING)
        if told is not None:
            told(point + 1, sum(found.proved))


@ordinary_mode()
@torch.no_grad()
def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    """(N,) predicted classes; −1 where a logit is not a number."""
    with evaluation_mode(model):
        logits = ask(model, x, "the model")
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1))
