"""Proofs that no image in a ball is classified otherwise, from bounds of a network's margins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.evaluation.certificates.bounding import Bounds
from advbench.evaluation.certificates.boxes import NORMS, Balls
from advbench.evaluation.certificates.network_steps import StepList, refuse
from advbench.evaluation.certificates.reading import read_network
from attacks_pool.calling.guard import evaluation_mode, ordinary_mode
from attacks_pool.calling.logits import ask
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.errors import InputError, unknown

METHODS = ("auto", "ibp", "crown", "alpha-crown")
"""The methods, each tighter and slower than the one before; ``auto`` leaves out what takes too long."""
STEPS, LAYER_STEPS = 20, 10
"""Gradient steps for the slopes of α-CROWN: for the margins, and for each layer before."""
REACH = 0.15
"""``auto`` optimises slopes only if the bound is at least minus this share of the margin at the centre.

On the published networks, optimised slopes raised bounds by a tenth of that margin at most.
"""
MOST_WORK = 5e10
"""Most multiplications per point that ``auto`` spends on the intervals before one activation."""
MOST_POINTS = 16
SAMPLED_VALUES = 2**19
"""Points that are bounded at once, and number of values of one step in all of them."""
SAFETY = 8.0
"""The margin that a proof requires, in multiples of the measured difference of float32 and float64."""
LEAST_SLACK = 1e-6
"""Least required margin, relative to the largest logit."""
LARGEST_GAP = 1e-3
"""Largest relative difference of logits between the model and the steps that were read from it."""


@dataclass(frozen=True)
class Margins:
    """Bounds of one batch.

    Attributes:
        lower: (N, K) lower bounds of z_y − z_k on each ball, float64; infinite at k = y.
        slack: (N,) the margin that a proof requires, for the rounding of float32.
        method: the tightest method that was used on each point.
    """

    lower: Tensor
    slack: Tensor
    method: list[str]

    @property
    def least(self) -> Tensor:
        """(N,) the lower bound of the smallest margin."""
        return self.lower.amin(1)

    @property
    def proved(self) -> Tensor:
        """(N,) whether every margin is above the slack; a bound that is not a number proves nothing."""
        finite = torch.isfinite(self.lower) | (self.lower == torch.inf)
        return finite.all(1) & (self.least > self.slack) & torch.isfinite(self.least)


class Prover:
    """Bounds the margins of one model.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K); it is read once, in eval mode.
        image_shape: (C, H, W).

    Raises:
        InputError: an operation of the model has no bounds.
    """

    def __init__(self, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        self.model = model
        tensors = [*model.parameters(), *model.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        if self.device.type == "mps":
            raise InputError("bounds need float64, which device 'mps' does not have: use cpu")
        self.network: StepList = read_network(model, image_shape, self.device)

    @property
    def at_once(self) -> int:
        """Number of points whose bounds fit into memory."""
        largest = max(math.prod(step.shape) for step in self.network.steps)
        return max(min(MOST_POINTS, SAMPLED_VALUES // largest), 1)

    @ordinary_mode()
    @torch.no_grad()
    def margins(
        self,
        x: Tensor,
        y: Tensor,
        *,
        norm: str,
        eps: float,
        method: str = "auto",
        until_proved: bool = False,
        seed: int = 0,
    ) -> Margins:
        """Lower bounds of the margins on the balls of radius ``eps`` around ``x``, cut with [0, 1].

        A method includes all faster ones, and the best bound of each margin is kept.

        Args:
            x: images (N, C, H, W).
            y: labels (N,).
            norm: linf, l2 or l1.
            eps: the radius, in the units of the images.
            method: one of :data:`METHODS`.
            until_proved: do not tighten the bounds of a point that is proved already.
            seed: determines the points on which rounding is measured.

        Raises:
            InputError: the norm or method is unknown, eps is negative or not finite, or the model does not
                compute what was read from it.
        """
        check_ball(norm, eps)
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        x, y = x.to(self.device).double(), y.to(self.device)
        bounds = Bounds.by_intervals(self.network, Balls(x, norm, float(eps)))
        classes = self.network.steps[-1].shape[0]
        lower = torch.full((len(x), classes), -torch.inf, dtype=torch.float64, device=self.device)
        lower.scatter_(1, y[:, None], torch.inf)
        found = Margins(lower, self._slack(bounds.balls, seed), [METHODS[1]] * len(x))
        points = torch.arange(len(x), device=self.device)
        for name, tighter, steps in _rungs(method):
            if until_proved:
                left = ~found.proved[points]
                points, bounds = points[left], bounds.part(left.nonzero()[:, 0])
            if method == "auto" and steps:
                near = found.least[points] > -REACH * self._at_centres(bounds, y[points])
                points, bounds = points[near], bounds.part(near.nonzero()[:, 0])
            if not len(points):
                break
            bounds = tighter(bounds)
            self._add(found, bounds, points, y, steps)
            for point in points.tolist():
                found.method[point] = name
        return found

    def _at_centres(self, bounds: Bounds, y: Tensor) -> Tensor:
        """(N,) the smallest margin of each ball's centre."""
        logits = self.network.values(bounds.balls.centre)
        right = logits.gather(1, y[:, None])
        return (right - logits.scatter(1, y[:, None], -torch.inf)).amin(1)

    def _add(self, found: Margins, bounds: Bounds, points: Tensor, y: Tensor, steps: int) -> None:
        """Bound all margins of some points, and keep the better bounds."""
        lower = found.lower[points]
        owner, other = torch.isfinite(lower.nan_to_num(neginf=0.0)).nonzero(as_tuple=True)
        rows = torch.zeros(len(owner), lower.shape[1], dtype=lower.dtype, device=lower.device)
        rows.scatter_(1, y[points][owner, None], 1.0)
        rows.scatter_(1, other[:, None], -1.0)
        least = bounds.lower(len(self.network.steps) - 1, rows, owner, steps=steps)
        # A bound that is not a number loses to any other.
        found.lower[points[owner], other] = torch.fmax(lower[owner, other], least)

    def _slack(self, balls: Balls, seed: int) -> Tensor:
        """(N,) the margin that a proof requires.

        The bounds hold for the network in exact arithmetic. The largest difference of the model's own logits
        from those in float64, over the centre and random points of the ball, estimates what rounding adds.
        """
        gap = size = balls.centre.new_zeros(len(balls.centre))
        with evaluation_mode(self.model):
            for point in balls.samples(2, keyed_generator("rounding", seed)):
                single = point.float()
                exact = self.network.values(single.double())
                logits = ask(self.model, single, "the model").double()
                gap = torch.maximum(gap, (logits - exact).abs().amax(1))
                size = torch.maximum(size, exact.abs().amax(1))
        if bool((gap > LARGEST_GAP * (1 + size)).any()):
            raise refuse("a model whose logits differ from those of the operations that it was read as")
        return 2 * SAFETY * gap + LEAST_SLACK * (1 + size)


Rung = tuple[str, Callable[[Bounds], Bounds], int]


def _rungs(method: str) -> Iterator[Rung]:
    """The bounds that a method takes in turn: name, how to get them, gradient steps for the margins."""
    most = MOST_WORK if method == "auto" else None
    yield "ibp", lambda bounds: bounds, 0
    if method == "ibp":
        return
    yield "crown", lambda bounds: bounds.with_lines(), 0
    yield "crown", lambda bounds: bounds.refined(most=most), 0
    yield "crown", lambda bounds: bounds.with_lines(parallel=True), 0
    if method == "crown":
        return
    yield "alpha-crown", lambda bounds: bounds.with_lines(), STEPS
    within = None if most is None else most / (3 * LAYER_STEPS)
    yield "alpha-crown", lambda bounds: bounds.refined(most=within, steps=LAYER_STEPS), STEPS


def check_ball(norm: str, eps: float) -> None:
    """Check a threat model.

    Raises:
        InputError: bounds do not know the norm, or eps is negative or not finite.
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if not (math.isfinite(eps) and eps >= 0):
        raise InputError(f"eps={eps} is out of range: it must be at least 0 and finite")
