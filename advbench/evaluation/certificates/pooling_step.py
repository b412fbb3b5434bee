"""Max pooling: linear bounds of the maximum of each window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from advbench.evaluation.certificates.activation_steps import Nonlinear, Pick, Relaxation
from advbench.evaluation.certificates.affine_steps import Shape
from advbench.evaluation.certificates.boxes import ROUNDING, Box


@dataclass(frozen=True)
class PoolLines(Relaxation):
    """Bounds of the maximum of each window; weights are (N, C, taps, windows), constants (N, C, windows).

    The output is at least the input of tap ``chosen`` (N, C, 1, windows), and at most
    Σ weights · inputs + height.
    """

    step: MaxPooling
    chosen: Tensor
    weights: Tensor
    height: Tensor

    def backward(self, rows: Tensor, pick: Pick) -> tuple[Tensor, Tensor]:
        """Positive coefficients go to one input of the window, negative ones are spread over it."""
        flat = rows.flatten(2)
        positive, negative = flat.clamp(min=0), flat.clamp(max=0)
        taps = negative[:, :, None] * pick(self.weights)
        taps = taps.scatter_add(2, pick(self.chosen), positive[:, :, None])
        return self.step.folded(taps), (negative * pick(self.height)).flatten(1)


class MaxPooling(Nonlinear):
    """Two-dimensional max pooling.

    Args:
        inputs: the index of its input.
        shapes: the shape (C, H, W) of its input.
        kernel: height and width of a window.
        stride: the distance of windows.
        padding: rows and columns added on each side, which never win.
        dilation: the distance of a window's taps.
        output: height and width of the output; windows may leave the padded input with ``ceil_mode``.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        shapes: tuple[Shape, ...],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        output: tuple[int, int],
    ) -> None:
        super().__init__(inputs, shapes)
        self.how: dict[str, tuple[int, int]] = {"kernel_size": kernel, "dilation": dilation, "stride": stride}
        self.output = output
        self.frame = [0, 0, 0, 0]
        for axis in (0, 1):
            reach = (output[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
            after = max(reach - shapes[0][axis + 1] - padding[axis], 0)
            self.frame[2 - 2 * axis : 4 - 2 * axis] = [padding[axis], after]

    def value(self, *given: Tensor) -> Tensor:
        """The maximum of each window."""
        most = self._windows(given[0], float(given[0].min()) - 1.0).amax(2)
        return most.view(*most.shape[:2], *self.output)

    def image(self, *boxes: Box) -> Box:
        """The maximum is monotone."""
        return Box(self.value(boxes[0].low), self.value(boxes[0].high))

    def relaxed(self, box: Box) -> PoolLines:
        """Below, the input with the greatest lower bound L.

        Above, L + Σ max(x − L, 0) with a chord for each term, or the greatest upper bound, whichever is lower
        at the middle of the interval.
        """
        # Padding gets one value below all bounds, so that it is neither chosen nor rises above the others.
        below = float(box.low.min()) - 1.0
        low, high = self._windows(box.low, below), self._windows(box.high, below)
        floor, chosen = low.max(2, keepdim=True)
        rises = high > floor
        width = torch.where(rises, high - low, 1.0)
        weights = torch.where(rises, (high - floor) / width, 0.0)
        terms = torch.where(rises, weights * low, 0.0)
        size = floor.abs() + terms.abs().sum(2, keepdim=True)
        height = floor - terms.sum(2, keepdim=True) + ROUNDING * size
        top = high.amax(2, keepdim=True)
        middle = (weights * (low + high) / 2 * rises).sum(2, keepdim=True) + height
        flat = top < middle
        weights = torch.where(flat, 0.0, weights)
        height = torch.where(flat, top, height)
        return PoolLines(self, chosen, weights, height[:, :, 0])

    def folded(self, taps: Tensor) -> Tensor:
        """Add up values (R, C, taps, windows) at the pixels that they belong to: (R, C, H, W)."""
        _, height, width = self.shapes[0]
        left, right, top, bottom = self.frame
        size = (height + top + bottom, width + left + right)
        whole = functional.fold(taps.flatten(1, 2), size, **self.how)
        return whole[:, :, top : top + height, left : left + width]

    def _windows(self, x: Tensor, padding: float) -> Tensor:
        """(N, C, taps, windows) of ``x`` (N, C, H, W), framed with the value ``padding``."""
        parts = functional.unfold(functional.pad(x, self.frame, value=padding), **self.how)
        return parts.view(len(x), x.shape[1], -1, parts.shape[2])
