"""Bounds of a network's outputs on balls of images: intervals and backward linear bounds.

Interval bounds (arXiv:1810.12715) go forward through the steps. Linear bounds (CROWN, arXiv:1811.00866) go
backward from linear functions of a step's output, replacing each activation by lines that bound it on the
interval of its input. Optimised slopes (α-CROWN, arXiv:2011.13824) make the result as large as they can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advbench.evaluation.certificates.activation_steps import Chords, Nonlinear, Rectifier, Relaxation
from advbench.evaluation.certificates.affine_steps import Affine
from advbench.evaluation.certificates.boxes import ROUNDING, Balls, Box
from advbench.evaluation.certificates.network_steps import StepList
from advbench.evaluation.certificates.windows import Windows, through_windows

MEMORY = 2**23
"""Number of float64 values that the coefficients of one backward pass may have in one step."""
RATE, DECAY = 0.25, 0.95
"""Size of the first gradient step for the slopes, which lie between 0 and 1, and its decay."""


@dataclass
class Bounds:
    """What is known about each step's output on a batch of balls.

    Attributes:
        network: the steps.
        balls: the images.
        boxes: the intervals of the outputs of all steps.
        lines: the linear bounds of the activations among them; those without are taken as their intervals.
    """

    network: StepList
    balls: Balls
    boxes: list[Box] = field(default_factory=list)
    lines: dict[int, Relaxation] = field(default_factory=dict)

    @classmethod
    def by_intervals(cls, network: StepList, balls: Balls) -> Bounds:
        """Intervals of all steps; for l2 and l1, affine functions of the images get those of the balls."""
        found = cls(network, balls, [balls.box])
        read = _read_by_activations(network)
        for index in range(1, len(network.steps)):
            found.boxes.append(network.image(index, found.boxes))
            if balls.norm != "linf" and index in read and network.linear[index]:
                found.tighten(index, torch.ones_like(found.boxes[index].low, dtype=torch.bool))
        return found

    def part(self, points: Tensor) -> Bounds:
        """The bounds of some points (M,), without lines."""
        balls = Balls(self.balls.centre[points], self.balls.norm, self.balls.eps)
        return Bounds(self.network, balls, [Box(box.low[points], box.high[points]) for box in self.boxes])

    def with_lines(self, *, parallel: bool = False) -> Bounds:
        """These bounds, with the linear bounds of all activations on their intervals.

        ``parallel`` takes parallel lines for ReLU and its kin, which are better for some points.
        """
        lines: dict[int, Relaxation] = {}
        for index, step in enumerate(self.network.steps):
            if isinstance(step, Nonlinear):
                box = self.boxes[step.inputs[0]]
                if parallel and isinstance(step, Rectifier):
                    lines[index] = step.parallel(box)
                else:
                    lines[index] = step.relaxed(box)
        return Bounds(self.network, self.balls, self.boxes, lines)

    def refined(self, *, most: float | None = None, steps: int = 0) -> Bounds:
        """Bounds whose intervals before activations come from backward passes, layer by layer.

        Args:
            most: keep the interval of a step if its backward passes need more multiplications for each point.
            steps: number of gradient steps for the slopes of each pass.
        """
        found = Bounds(self.network, self.balls, [self.boxes[0]])
        read = _read_by_activations(self.network)
        for index, step in enumerate(self.network.steps[1:], 1):
            box = self.network.image(index, found.boxes).within(self.boxes[index])
            found.boxes.append(box)
            if isinstance(step, Nonlinear):
                found.lines[index] = step.relaxed(found.boxes[step.inputs[0]])
            if index in read and not (self.balls.norm == "linf" and self.network.exact[index]):
                loose = torch.stack([reader.loose(box) for reader in read[index]]).any(0)
                if most is None or self._cost(index, loose) <= most:
                    found.tighten(index, loose, steps=steps)
        return found

    def _cost(self, index: int, where: Tensor) -> float:
        """Multiplications that :meth:`tighten` needs for each point."""
        work = sum(step.work for step in self.network.steps[: index + 1])
        return 2.0 * float(where.sum()) / len(where) * work

    def tighten(self, index: int, where: Tensor, *, steps: int = 0) -> None:
        """Intersect the interval of a step with backward bounds, where ``where`` (N, ...) is true."""
        owner, *place = where.nonzero(as_tuple=True)
        if not len(owner):
            return
        box = self.boxes[index]
        shape = box.low.shape[1:]
        flat = place[0]
        for size, at in zip(shape[1:], place[1:], strict=True):
            flat = flat * size + at
        low, high = box.low.flatten(1).clone(), box.high.flatten(1).clone()
        for part in self._parts(len(owner), index):
            points, units = owner[part], flat[part]
            least = self._unit(index, points, units, 1.0, steps)
            most = -self._unit(index, points, units, -1.0, steps)
            low[points, units] = torch.maximum(low[points, units], least)
            high[points, units] = torch.minimum(high[points, units], most)
        self.boxes[index] = Box(low.view_as(box.low), high.view_as(box.high))

    def lower(self, index: int, rows: Tensor, owner: Tensor, *, steps: int = 0) -> Tensor:
        """Lower bounds of linear functions of a step's output.

        Args:
            index: the step.
            rows: (R, *shape) coefficients.
            owner: (R,) the point whose ball each row is bounded on.
            steps: number of gradient steps for the slopes of ReLU and its kin.

        Returns:
            (R,) bounds of Σ rows · output on each row's ball.
        """
        found = []
        for part in self._parts(len(owner), index):
            best = self._backward(index, rows[part], owner[part], self.lines)
            if steps:
                best = self._optimised(index, rows[part], owner[part], best, steps)
            found.append(best)
        return torch.cat(found) if found else rows.new_zeros(0)

    def _unit(self, index: int, owner: Tensor, units: Tensor, sign: float, steps: int) -> Tensor:
        """(R,) lower bounds of sign · output for single units of a step, given by their flat indices."""
        shape = self.network.steps[index].shape
        if len(shape) != 3 or math.prod(shape[1:]) == 1:
            rows = torch.zeros(len(units), math.prod(shape), dtype=torch.float64, device=units.device)
            rows = rows.scatter_(1, units[:, None], sign).view(-1, *shape)
            return self.lower(index, rows, owner, steps=steps)
        # Slopes are not optimised here: there are many units, and each depends on few others.
        windows = Windows.of_units(units, owner, shape, sign)
        reached, windows, constants = through_windows(self.network, self.lines, index, windows)
        if reached == 0:
            least, terms = self.balls.least(windows.values, windows.pick)
            constants.append(least[:, None] - ROUNDING * terms[:, None])
            return _summed(constants)
        found = [
            self._backward(reached, windows.rows(part).dense(), owner[part], self.lines)
            for part in self._parts(len(owner), reached)
        ]
        return torch.cat(found) + _summed(constants)

    def _parts(self, rows: int, index: int) -> Iterator[slice]:
        """Slices of as many rows as fit into memory."""
        largest = max(math.prod(step.shape) for step in self.network.steps[: index + 1])
        at_once = max(MEMORY // largest, 1)
        return (slice(start, start + at_once) for start in range(0, rows, at_once))

    def _backward(self, index: int, rows: Tensor, owner: Tensor, lines: Mapping[int, Relaxation]) -> Tensor:
        def pick(tensor: Tensor) -> Tensor:
            return tensor[owner]

        waiting: dict[int, Tensor] = {index: rows}
        total, size = rows.new_zeros(len(rows)), rows.new_zeros(len(rows))

        def count(terms: Tensor) -> None:
            nonlocal total, size
            total = total + terms.sum(1)
            size = size + terms.detach().abs().sum(1)

        for number in range(index, 0, -1):
            if number not in waiting:
                continue
            current, step = waiting.pop(number), self.network.steps[number]
            if isinstance(step, Affine):
                if step.constant is not None:
                    count((current * step.constant).flatten(1))
                parts = step.transposed(current)
            elif number in lines:
                back, constants = lines[number].backward(current, pick)
                count(constants)
                parts = (back,)
            else:
                box = self.boxes[number]
                count(torch.where(current > 0, current * pick(box.low), current * pick(box.high)).flatten(1))
                continue
            for source, part in zip(step.inputs, parts, strict=True):
                waiting[source] = waiting[source] + part if source in waiting else part
        if 0 in waiting:
            least, terms = self.balls.least(waiting[0], pick)
            total, size = total + least, size + terms.detach()
        return total - ROUNDING * size

    def _optimised(self, index: int, rows: Tensor, owner: Tensor, best: Tensor, steps: int) -> Tensor:
        """The best bound of each row over slopes found by gradient ascent; every slope gives a valid one."""
        kinked: dict[int, tuple[Rectifier, Box]] = {}
        slopes: dict[int, Tensor] = {}
        for number, line in self.lines.items():
            step = self.network.steps[number]
            if number < index and isinstance(step, Rectifier) and isinstance(line, Chords):
                kinked[number] = step, self.boxes[step.inputs[0]]
                slopes[number] = line.lower[owner].clone().requires_grad_(True)
        if not slopes:
            return best
        with torch.enable_grad():
            optimizer = torch.optim.Adam(slopes.values(), lr=RATE, maximize=True)
            for _ in range(steps):
                own = {n: step.with_slopes(box, slopes[n], owner) for n, (step, box) in kinked.items()}
                found = self._backward(index, rows, owner, {**self.lines, **own})
                if not found.requires_grad:
                    # No activation lies between the images and these outputs.
                    return best
                best = torch.fmax(best, found.detach())
                own_slopes = list(slopes.values())
                gradients = torch.autograd.grad(
                    found.sum(), own_slopes, allow_unused=True, materialize_grads=True
                )
                for slope, gradient in zip(own_slopes, gradients, strict=True):
                    slope.grad = gradient
                optimizer.step()
                optimizer.param_groups[0]["lr"] *= DECAY
                for number, (step, _) in kinked.items():
                    slopes[number].data.clamp_(step.leak, torch.ones_like(step.leak))
        own = {n: step.with_slopes(box, slopes[n].detach(), owner) for n, (step, box) in kinked.items()}
        return torch.fmax(best, self._backward(index, rows, owner, {**self.lines, **own}))


def _read_by_activations(network: StepList) -> dict[int, list[Nonlinear]]:
    """The activations that take each step's output."""
    found: dict[int, list[Nonlinear]] = {}
    for step in network.steps:
        if isinstance(step, Nonlinear):
            found.setdefault(step.inputs[0], []).append(step)
    return found


def _summed(constants: list[Tensor]) -> Tensor:
    """(R,) sums of terms (R, ...), lowered by the rounding of float64."""
    terms = torch.cat(constants, 1)
    return terms.sum(1) - ROUNDING * terms.abs().sum(1)
