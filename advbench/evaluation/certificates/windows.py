"""Rows of coefficients that are zero outside of a small window, as those of one unit of a convolution are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from advbench.evaluation.certificates.activation_steps import Chords, Lines, Relaxation
from advbench.evaluation.certificates.affine_steps import Affine, Convolution, Scaling
from advbench.evaluation.certificates.builders import pair
from advbench.evaluation.certificates.network_steps import StepList


@dataclass(frozen=True)
class Windows:
    """Coefficients of a tensor (C, H, W) for each of R rows.

    Attributes:
        values: (R, C, h, w) the coefficients inside the window; those outside of the tensor are zero.
        top, left: (R,) the place of the window's first value, which may lie outside of the tensor.
        owner: (R,) the point of each row.
        size: H and W.
    """

    values: Tensor
    top: Tensor
    left: Tensor
    owner: Tensor
    size: tuple[int, int]

    @classmethod
    def of_units(cls, units: Tensor, owner: Tensor, shape: tuple[int, ...], sign: float) -> Windows:
        """One row for each unit of a tensor of ``shape`` (C, H, W), given by its flat index."""
        channels, height, width = shape
        channel, place = units // (height * width), units % (height * width)
        values = torch.zeros(len(units), channels, 1, 1, dtype=torch.float64, device=units.device)
        values[torch.arange(len(units), device=units.device), channel] = sign
        return cls(values, place // width, place % width, owner, (height, width))

    def pick(self, tensor: Tensor) -> Tensor:
        """Each row's window of its point's part of ``tensor`` (N, C, H, W): (R, C, h, w)."""
        rows, columns = self._places
        found = tensor.permute(0, 2, 3, 1)[self.owner[:, None, None], rows, columns]
        return found.permute(0, 3, 1, 2)

    def constant(self, tensor: Tensor) -> Tensor:
        """Each row's window of ``tensor``, which broadcasts to (1, C, H, W) and serves all points."""
        if tensor.dim() < 2 or tensor.shape[-2:].numel() == 1:
            return tensor
        whole = tensor.expand(1, self.values.shape[1], *self.size)
        return Windows(self.values, self.top, self.left, torch.zeros_like(self.owner), self.size).pick(whole)

    def transposed(self, step: Convolution) -> Windows:
        """The coefficients of the input of a convolution."""
        top = self.top * step.stride[0] - step.padding[0]
        left = self.left * step.stride[1] - step.padding[1]
        _, height, width = step.shapes[0]
        values = self._transposed_values(step)
        return Windows(values, top, left, self.owner, (height, width)).masked()

    def _transposed_values(self, step: Convolution) -> Tensor:
        if step.groups > 1:
            return functional.conv_transpose2d(
                self.values, step.weight, stride=step.stride, groups=step.groups, dilation=step.dilation
            )
        # One large matrix product is faster than a convolution for each of many small windows.
        count, channels, *window = self.values.shape
        taps = self.values.permute(0, 2, 3, 1).reshape(-1, channels) @ step.weight.flatten(1)
        if math.prod(window) == 1 and step.dilation == (1, 1):
            return taps.view(count, *step.weight.shape[1:])
        taps = taps.view(count, math.prod(window), -1).transpose(1, 2)
        how = {"kernel_size": pair(step.weight.shape[2:]), "stride": step.stride}
        return functional.fold(taps, reach_of(step, window), dilation=step.dilation, **how)

    def masked(self) -> Windows:
        """The same with zeros outside of the tensor."""
        return self.of(self.values * self._inside[:, None])

    def of(self, values: Tensor) -> Windows:
        """Other coefficients in the same windows."""
        return Windows(values, self.top, self.left, self.owner, self.size)

    def rows(self, part: slice) -> Windows:
        """Some of the rows."""
        given = (self.values, self.top, self.left, self.owner)
        values, top, left, owner = (tensor[part] for tensor in given)
        return Windows(values, top, left, owner, self.size)

    def dense(self) -> Tensor:
        """The coefficients of the whole tensor, (R, C, H, W)."""
        height, width = self.size
        (rows, columns), inside = self._places, self._inside
        count, channels = self.values.shape[:2]
        whole = self.values.new_zeros(count, height, width, channels)
        number = torch.arange(count, device=self.values.device)[:, None, None].expand_as(inside)
        place = (number[inside], rows.expand_as(inside)[inside], columns.expand_as(inside)[inside])
        whole[place] = self.values.permute(0, 2, 3, 1)[inside]
        return whole.permute(0, 3, 1, 2)

    @cached_property
    def _raw(self) -> tuple[Tensor, Tensor]:
        """Row (R, h, 1) and column (R, 1, w) of each value, which may lie outside of the tensor."""
        height, width = self.values.shape[2:]
        device = self.values.device
        rows = self.top[:, None, None] + torch.arange(height, device=device)[:, None]
        return rows, self.left[:, None, None] + torch.arange(width, device=device)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns, moved into the tensor."""
        rows, columns = self._raw
        return rows.clamp(0, self.size[0] - 1), columns.clamp(0, self.size[1] - 1)

    @property
    def _inside(self) -> Tensor:
        """(R, h, w) which values lie in the tensor."""
        rows, columns = self._raw
        return ((rows >= 0) & (rows < self.size[0])) & ((columns >= 0) & (columns < self.size[1]))


def reach_of(step: Convolution, window: Sequence[int]) -> tuple[int, int]:
    """Height and width of the input that a window of a convolution's output depends on."""
    high, wide = (
        (window[axis] - 1) * step.stride[axis] + step.dilation[axis] * (step.weight.shape[axis + 2] - 1) + 1
        for axis in (0, 1)
    )
    return high, wide


def through_windows(
    network: StepList, lines: Mapping[int, Relaxation], index: int, rows: Windows
) -> tuple[int, Windows, list[Tensor]]:
    """Go backward from step ``index`` as long as windows stay smaller than the tensors.

    Returns:
        the step that was reached, the coefficients of its output, and constants (R, terms).
    """
    constants = [torch.zeros_like(rows.values.flatten(1)[:, :1])]
    while index:
        step = network.steps[index]
        if isinstance(step, Convolution):
            reach = reach_of(step, rows.values.shape[2:])
            if reach[0] * reach[1] >= step.shapes[0][1] * step.shapes[0][2]:
                break
        elif not isinstance(step, Scaling) and not isinstance(lines.get(index), Lines | Chords):
            break
        if isinstance(step, Affine):
            if step.constant is not None:
                constants.append((rows.values * rows.constant(step.constant)).flatten(1))
            if isinstance(step, Convolution):
                rows = rows.transposed(step)
            elif isinstance(step, Scaling):
                rows = rows.of(rows.values * rows.constant(step.scale))
        else:
            back, terms = lines[index].backward(rows.values, rows.pick)
            rows = rows.of(back)
            constants.append(terms)
        index = step.inputs[0]
    return index, rows, constants
