"""The affine operations of a network: their values, the images of intervals, and their transposes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from advbench.evaluation.certificates.boxes import ROUNDING, Box

Shape = tuple[int, ...]


class Step:
    """One operation of a network.

    Attributes:
        inputs: the indices of the steps whose outputs it takes.
        shapes: the shape of each input, without the batch.
        shape: the shape of its output, without the batch.
    """

    def __init__(self, inputs: tuple[int, ...], shapes: tuple[Shape, ...]) -> None:
        self.inputs, self.shapes = inputs, shapes
        self.shape: Shape = ()

    @property
    def work(self) -> int:
        """Multiplications of one pass for one image, forward or backward."""
        return math.prod(self.shape)

    def value(self, *given: Tensor) -> Tensor:
        """The output for inputs (N, ...)."""
        raise NotImplementedError

    def image(self, *boxes: Box) -> Box:
        """A box that contains the outputs for all inputs in ``boxes``."""
        raise NotImplementedError


class ImageStep(Step):
    """The images, which are step 0 of every network."""

    def value(self, *given: Tensor) -> Tensor:
        """The images themselves."""
        return given[0]


class Affine(Step):
    """W x + b, for one input or the sum over several."""

    keeps_boxes = False
    """Whether each output depends on one input value, so that the image of a box is exactly a box."""

    def absolute(self, *radii: Tensor) -> Tensor:
        """|W| r: the radii of the outputs for inputs with these radii."""
        raise NotImplementedError

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Wᵀ applied to each of ``rows`` (R, *shape); one result (R, ...) per input."""
        raise NotImplementedError

    @property
    def constant(self) -> Tensor | None:
        """b, which broadcasts to the output, or None if it is zero."""
        return None

    def image(self, *boxes: Box) -> Box:
        """Centre and radius, with the rounding of float64 added to the radius."""
        middles = [(box.low + box.high) / 2 for box in boxes]
        radii = [(box.high - box.low) / 2 + ROUNDING * (box.low.abs() + box.high.abs()) for box in boxes]
        middle = self.value(*middles)
        radius = self.absolute(*radii) + ROUNDING * middle.abs()
        return Box(middle - radius, middle + radius)


class Convolution(Affine):
    """A two-dimensional convolution with zero padding."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        shapes: tuple[Shape, ...],
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__(inputs, shapes)
        self.weight, self.bias = weight, bias
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    @property
    def work(self) -> int:
        """As many multiplications for each output as its channel has weights."""
        return math.prod(self.shape) * self.weight[0].numel()

    def value(self, *given: Tensor) -> Tensor:
        """The convolution of the input."""
        return self._convolve(given[0], self.weight, self.bias)

    def absolute(self, *radii: Tensor) -> Tensor:
        """The convolution with |W|."""
        return self._convolve(radii[0], self.weight.abs(), None)

    @property
    def constant(self) -> Tensor | None:
        """The bias of each channel."""
        return None if self.bias is None else self.bias.view(1, -1, 1, 1)

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The transposed convolution, with as much more output as the stride has skipped."""
        missing = []
        for axis in (0, 1):
            reach = self.dilation[axis] * (self.weight.shape[axis + 2] - 1) + 1
            covered = (rows.shape[axis + 2] - 1) * self.stride[axis] - 2 * self.padding[axis] + reach
            missing.append(self.shapes[0][axis + 1] - covered)
        back = functional.conv_transpose2d(
            rows,
            self.weight,
            stride=self.stride,
            padding=self.padding,
            output_padding=(missing[0], missing[1]),
            groups=self.groups,
            dilation=self.dilation,
        )
        return (back,)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Dense(Affine):
    """A linear layer over the last dimension."""

    def __init__(
        self, inputs: tuple[int, ...], shapes: tuple[Shape, ...], weight: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__(inputs, shapes)
        self.weight, self.bias = weight, bias

    @property
    def work(self) -> int:
        """One multiplication for each weight, at each place."""
        return math.prod(self.shape) * self.weight.shape[1]

    def value(self, *given: Tensor) -> Tensor:
        """x Wᵀ + b."""
        return functional.linear(given[0], self.weight, self.bias)

    def absolute(self, *radii: Tensor) -> Tensor:
        """r |W|ᵀ."""
        return functional.linear(radii[0], self.weight.abs())

    @property
    def constant(self) -> Tensor | None:
        """The bias."""
        return self.bias

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows times W."""
        return (rows @ self.weight,)


class Scaling(Affine):
    """x · scale + shift, elementwise; both broadcast to the input."""

    keeps_boxes = True

    def __init__(
        self, inputs: tuple[int, ...], shapes: tuple[Shape, ...], scale: Tensor, shift: Tensor
    ) -> None:
        super().__init__(inputs, shapes)
        self.scale, self.shift = scale, shift

    def value(self, *given: Tensor) -> Tensor:
        """x · scale + shift."""
        return given[0] * self.scale + self.shift

    def absolute(self, *radii: Tensor) -> Tensor:
        """r · |scale|."""
        return radii[0] * self.scale.abs()

    @property
    def constant(self) -> Tensor | None:
        """The shift."""
        return self.shift

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows times scale."""
        return (rows * self.scale,)


class NonNegative(Affine):
    """A linear map with non-negative weights: average pooling, padding, selection, another shape.

    Args:
        inputs: the index of its input.
        shapes: the shape of its input.
        function: the map, from (N, ...) to (N, ...).
        keeps_boxes: whether each output is one of the inputs, and none of them twice.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        shapes: tuple[Shape, ...],
        function: Callable[[Tensor], Tensor],
        *,
        keeps_boxes: bool = False,
    ) -> None:
        super().__init__(inputs, shapes)
        self.function, self.keeps_boxes = function, keeps_boxes

    def value(self, *given: Tensor) -> Tensor:
        """The map's value."""
        return self.function(given[0])

    def absolute(self, *radii: Tensor) -> Tensor:
        """The map itself, since its weights are not negative."""
        return self.function(radii[0])

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The vector-Jacobian product, which for a linear map does not depend on the point."""
        zeros = torch.zeros(len(rows), *self.shapes[0], dtype=rows.dtype, device=rows.device)
        further = torch.is_grad_enabled() and rows.requires_grad
        with torch.enable_grad():
            output = self.function(zeros.requires_grad_(True))
            (back,) = torch.autograd.grad(output, zeros, rows, create_graph=further)
        return (back,)


class Sum(Affine):
    """The sum of two inputs of one shape, the second times a number."""

    def __init__(self, inputs: tuple[int, ...], shapes: tuple[Shape, ...], factor: float = 1.0) -> None:
        super().__init__(inputs, shapes)
        self.factor = factor

    def value(self, *given: Tensor) -> Tensor:
        """first + factor · second."""
        return given[0] + self.factor * given[1]

    def absolute(self, *radii: Tensor) -> Tensor:
        """The sum of the radii; the second counts as often as its input."""
        return radii[0] + abs(self.factor) * radii[1]

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows for both."""
        return rows, self.factor * rows


class Concatenation(Affine):
    """Several inputs side by side along one dimension, counted with the batch."""

    def __init__(self, inputs: tuple[int, ...], shapes: tuple[Shape, ...], axis: int) -> None:
        super().__init__(inputs, shapes)
        self.axis = axis

    def value(self, *given: Tensor) -> Tensor:
        """The inputs side by side."""
        return torch.cat(given, self.axis)

    def absolute(self, *radii: Tensor) -> Tensor:
        """The radii side by side."""
        return torch.cat(radii, self.axis)

    def transposed(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Each input's part of the rows."""
        return torch.split(rows, [shape[self.axis - 1] for shape in self.shapes], self.axis)
