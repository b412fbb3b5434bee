"""The binarisation test: tasks with known adversarial points, which the run's own attacks must find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.evaluation.stochastic import logits_of
from attacks_pool import Attack, verify
from attacks_pool.calling.guard import buffers_kept
from attacks_pool.calling.randomness import keyed_generator, normal, uniform
from attacks_pool.errors import InputError
from attacks_pool.norms import project
from attacks_pool.verifier import exact_arithmetic
from leaderboards import Flag

MOST_POINTS, LEAST_POINTS = 32, 8
"""Bounds of the number of points with a task, which is a sixteenth of the points that the run measured."""
NEIGHBOURS = 64
"""The number of points of each ball that the planted point must differ from."""
RIDGE = 1e-3
"""The regularisation of the covariance of logits, relative to its mean diagonal."""
LEAST_FOUND = 0.6
"""The share of the planted points that the run's attacks must find."""
DEAREST = 2000
"""The most passes per point of an attack that is used, unless all attacks need more."""


@dataclass(frozen=True)
class Tasks:
    """A task for each of n points: class 1 where ``weights``·z + ``bias`` > 0, z the model's logits (N, K).

    ``x`` (n, C, H, W) are the centres, of class 0; each has a point within eps that is of class 1.
    """

    x: Tensor
    weights: Tensor
    bias: Tensor


class Planted(nn.Module):
    """A model with two classes instead of its own: the task of the nearest centre classifies an image."""

    def __init__(self, model: nn.Module, tasks: Tasks) -> None:
        super().__init__()
        self.model, self.tasks = model, tasks

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        with torch.no_grad():
            task = torch.cdist(x.flatten(1).float(), self.tasks.x.flatten(1)).argmin(1)
        logits = self.model(x)
        score = (logits * self.tasks.weights[task]).sum(1) + self.tasks.bias[task]
        return torch.stack([-score, score], 1) / 2


def plant(model: nn.Module, x: Tensor, *, norm: str, eps: float, seed: int) -> Tasks | None:
    """Make tasks around points ``x`` (n, C, H, W), except points for which no task is possible.

    Zimmermann et al., arXiv:2206.13991. One of `NEIGHBOURS` random points on the surface of the ball is
    planted: the one whose logits a linear readout separates best from those of the centre, of the other
    points and of as many points inside the ball. The readout is Fisher's, w = (Σ + λI)⁻¹(z* − z̄), with its
    threshold halfway between the planted point and the nearest other. Constant logits allow no task.
    """
    kept, weights, biases = [], [], []
    with buffers_kept(model):
        for number, point in enumerate(x):
            centre = point[None].expand(NEIGHBOURS, *point.shape)
            draws = keyed_generator("planted", seed, number)
            surface = _surface(centre, norm, eps, draws)
            inside = centre + (surface - centre).flip(0) * uniform(surface[:, :1, :1, :1], draws)
            z = logits_of(model, torch.cat([surface, inside, point[None]]), seed).double()
            if (found := _readout(z)) is not None:
                kept.append(point)
                weights.append(found[0])
                biases.append(found[1])
    if not kept:
        return None
    return Tasks(torch.stack(kept), torch.stack(weights).float(), torch.stack(biases).float())


def _surface(x: Tensor, norm: str, eps: float, draws: torch.Generator) -> Tensor:
    """Random points as far from ``x`` as the ball and the box allow."""
    direction = normal(x, draws)
    if norm == "linf":
        return (x + eps * direction.sign()).clamp(0, 1)
    return project(x + 1e3 * eps * direction, x, eps * (1 - 1e-5), norm)


def _readout(z: Tensor) -> tuple[Tensor, Tensor] | None:
    """w (K,) and b of the readout that best separates one of the first `NEIGHBOURS` rows of ``z``."""
    if not bool(torch.isfinite(z).all()):
        return None
    middle = z - z.mean(0)
    covariance = middle.T @ middle / len(z)
    scale = float(covariance.diagonal().mean())
    if scale <= 0:
        return None
    inverse = torch.linalg.inv(
        covariance + RIDGE * scale * torch.eye(len(covariance), dtype=z.dtype, device=z.device)
    )
    directions = middle[:NEIGHBOURS] @ inverse
    scores = directions @ middle.T
    own = scores.diagonal()
    rest = scores.clone()
    rest.diagonal().fill_(-torch.inf)
    gaps = (own - rest.amax(1)) / own.clamp_min(1e-30)
    best = int(gaps.argmax())
    if float(gaps[best]) <= 1e-3:
        return None
    gap = float(own[best] - rest[best].max())
    weights = directions[best] * (2 / gap)
    threshold = float(own[best] + rest[best].max()) / 2
    return weights, -weights @ z.mean(0) - threshold * 2 / gap


def planted_flags(
    model: nn.Module, x: Tensor, attacks: Sequence[Attack], *, points: int, seed: int
) -> Iterator[Flag]:
    """``planted-not-found``: the run's own attacks miss points that certainly exist.

    Args:
        model: maps images to logits; must not be randomised.
        x: points (N, C, H, W) that it gets right.
        attacks: the run's attacks; the cheapest run first, the others on the remaining tasks.
        points: how many points the run measured.
        seed: the key of every draw.
    """
    count = min(max(points // 16, LEAST_POINTS), MOST_POINTS)
    for norm in ("linf", "l2"):
        own = _asked([attack for attack in attacks if attack.info.norm == norm])
        if not own:
            continue
        eps = max(attack.eps for attack in own)
        tasks = plant(model, x[:count], norm=norm, eps=eps, seed=seed)
        if tasks is None or len(tasks.x) < LEAST_POINTS:
            continue
        found, asked = _found(Planted(model, tasks), tasks, [one for one in own if one.eps == eps], seed)
        if asked and found < LEAST_FOUND * len(tasks.x):
            planted, texts = len(tasks.x), [one.text for one in asked]
            message = (
                f"the run's own attacks ({', '.join(one.name for one in asked)}) find only {found} of "
                f"{planted} adversarial points that were planted within the {norm} ball"
            )
            where = {"norm": norm, "eps": eps}
            yield Flag.of("planted-not-found", message, **where, planted=planted, found=found, attacks=texts)


def _asked(attacks: Sequence[Attack]) -> list[Attack]:
    """The run's white-box attacks by cost, without the most expensive; black-box ones if there are no others.

    Random search finds planted points without gradients, so its success says nothing about gradient attacks.
    """

    def passes(attack: Attack) -> int:
        cost = attack.info.passes(attack.knobs)
        return sum(cost) if cost is not None else DEAREST

    white = [one for one in attacks if one.info.access == "white-box"]
    ordered = sorted(white or [one for one in attacks if one.info.access == "black-box"], key=passes)
    return [one for one in ordered if passes(one) <= DEAREST] or ordered[:1]


def _found(planted: Planted, tasks: Tasks, attacks: Sequence[Attack], seed: int) -> tuple[int, list[Attack]]:
    """How many tasks are solved, and which attacks were used."""
    x, y = tasks.x, torch.zeros(len(tasks.x), dtype=torch.int64, device=tasks.x.device)
    left = torch.ones(len(x), dtype=torch.bool, device=x.device)
    asked = []
    for attack in attacks:
        if not bool(left.any()):
            break
        # Some attacks need more classes than a planted task has.
        with suppress(InputError), exact_arithmetic(x.device), buffers_kept(planted):
            draws = keyed_generator("planted", seed, attack.text)
            crafted = attack(planted, x[left], y[left], generator=draws, early_stop=True, exact=True)
            verdict = verify(
                planted,
                x[left],
                y[left],
                crafted,
                norm=attack.info.norm,
                eps=attack.eps,
                kind=attack.info.kind,
            )
            left[left.clone()] = verdict.robust
            asked.append(attack)
    return int((~left).sum()), asked
