"""The operations that have bounds, under the names of torch's functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from advbench.evaluation.certificates.activation_steps import Curve, Rectifier
from advbench.evaluation.certificates.affine_steps import (
    Concatenation,
    Convolution,
    Dense,
    NonNegative,
    Scaling,
    Step,
    Sum,
)
from advbench.evaluation.certificates.curve_table import CURVES
from advbench.evaluation.certificates.network_steps import SAMPLES, Piped, StepList, UncoveredError
from advbench.evaluation.certificates.pooling_step import MaxPooling

Builder = Callable[..., Any]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """``3`` or ``(3, 3)`` as two numbers."""
    if isinstance(value, int):
        return value, value
    first, last = (tuple(value) * 2)[:2] if len(value) == 1 else tuple(value)
    return int(first), int(last)


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64, without its gradient."""
    return tensor.detach().double()


class Builders:
    """Appends the step of each operation; operations have the names of torch's functions."""

    def __init__(self, network: StepList) -> None:
        self.network = network

    def known(self, name: str) -> Builder | None:
        """The method that appends an operation of this name, if there is one."""
        found: Builder | None = getattr(self, f"do_{name}", None)
        if found is None and name in CURVES:
            return lambda x, *more, **how: self.curve(name, x, *more, **how)
        return found

    def add(self, kind: Callable[..., Step], *given: Piped, **how: Any) -> Piped:
        """Append a step of ``kind``."""
        shapes = tuple(one.shape for one in given)
        return self.network.add(kind(tuple(one.index for one in given), shapes, **how), *given)

    def linear_map(
        self, x: Piped, function: Callable[[Tensor], Tensor], *, keeps_boxes: bool = False
    ) -> Piped:
        """Append a linear map with non-negative weights that treats every image by itself."""
        if len(function(x.sample)) != SAMPLES:
            raise UncoveredError("an operation across the batch")
        return self.add(NonNegative, x, function=function, keeps_boxes=keeps_boxes)

    def reshaped(self, x: Piped, sample: Tensor) -> Piped:
        """Append the change of shape that made ``sample``."""
        if sample.shape[0] != SAMPLES:
            raise UncoveredError("a change of the batch's shape")
        shape = tuple(sample.shape[1:])
        return self.linear_map(x, lambda values: values.reshape(len(values), *shape), keeps_boxes=True)

    def scaled(self, x: Piped, scale: Tensor, shift: Tensor) -> Piped:
        """Append x · scale + shift, if both broadcast to ``x`` and are the same for every image."""
        for part in (scale, shift):
            given, allowed = part.shape[::-1], (*x.shape[::-1], 1)
            if len(given) > len(allowed) or any(
                size not in (1, most) for size, most in zip(given, allowed, strict=False)
            ):
                raise UncoveredError("a constant of another shape")
        return self.add(Scaling, x, scale=scale, shift=shift)

    # Layers with weights.

    def do_conv2d(
        self,
        x: Piped,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Piped:
        stride, dilation = pair(stride), pair(dilation)
        if len(x.shape) != 3:
            raise UncoveredError("a convolution of a tensor that is not (N, C, H, W)")
        if padding == "same":
            total = [dilation[axis] * (weight.shape[axis + 2] - 1) for axis in (0, 1)]
            x = self.framed(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
            padding = 0
        around = (0, 0) if padding == "valid" else pair(padding)
        own = {"weight": double(weight), "bias": None if bias is None else double(bias)}
        return self.add(
            Convolution, x, **own, stride=stride, padding=around, dilation=dilation, groups=groups
        )

    def do_linear(self, x: Piped, weight: Tensor, bias: Tensor | None = None) -> Piped:
        return self.add(Dense, x, weight=double(weight), bias=None if bias is None else double(bias))

    def do_matmul(self, x: Any, weight: Any) -> Piped:
        if not isinstance(x, Piped) or not isinstance(weight, Tensor) or weight.dim() != 2:
            raise UncoveredError("a matrix product that is not of images with a constant matrix")
        return self.do_linear(x, weight.T)

    do_mm = do_matmul

    def do_batch_norm(
        self,
        x: Piped,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,  # noqa: ARG002 - as torch's function has it
        eps: float = 1e-5,
    ) -> Piped:
        if training or running_mean is None or running_var is None:
            raise UncoveredError("batch norm by the statistics of its batch")
        scale = (double(running_var) + eps).rsqrt()
        if weight is not None:
            scale = scale * double(weight)
        shift = -double(running_mean) * scale
        if bias is not None:
            shift = shift + double(bias)
        shape = (1, -1, *[1] * (len(x.shape) - 1))
        return self.scaled(x, scale.view(shape), shift.view(shape))

    # Activations.

    def do_relu(self, x: Piped, inplace: bool = False) -> Piped:  # noqa: ARG002
        return self.rectified(x, torch.zeros((), dtype=torch.float64, device=x.sample.device))

    def do_leaky_relu(self, x: Piped, negative_slope: float = 0.01, inplace: bool = False) -> Piped:  # noqa: ARG002
        leak = torch.tensor(negative_slope, dtype=torch.float64, device=x.sample.device)
        return self.rectified(x, leak)

    def do_prelu(self, x: Piped, weight: Tensor) -> Piped:
        shape = (1, -1, *[1] * (len(x.shape) - 1)) if weight.numel() > 1 else ()
        return self.rectified(x, double(weight).view(shape))

    def rectified(self, x: Piped, leak: Tensor) -> Piped:
        """Append max(x, leak · x)."""
        if not bool((leak <= 1).all()):
            raise UncoveredError("a leaky ReLU whose negative slope is above 1")
        return self.add(Rectifier, x, leak=leak)

    def curve(self, name: str, x: Piped, *more: Any, inplace: bool = False, **how: Any) -> Piped:  # noqa: ARG002
        """Append a smooth activation with its arguments as torch's function takes them."""
        return self.add(Curve, x, **CURVES[name](*more, **how))

    # Pooling and padding.

    def do_avg_pool2d(self, x: Piped, *more: Any, **how: Any) -> Piped:
        if len(more) > 5 or how.get("divisor_override") is not None:
            raise UncoveredError("average pooling with a divisor of its own")
        return self.linear_map(x, lambda values: functional.avg_pool2d(values, *more, **how))

    def do_adaptive_avg_pool2d(self, x: Piped, output_size: Any) -> Piped:
        return self.linear_map(x, lambda values: functional.adaptive_avg_pool2d(values, output_size))

    def do_mean(self, x: Piped, dim: Any = None, keepdim: bool = False) -> Piped:
        axes = [dim] if isinstance(dim, int) else list(dim or [0])
        if any(axis % x.sample.dim() == 0 for axis in axes):
            raise UncoveredError("a mean over the batch")
        return self.linear_map(x, lambda values: values.mean(axes, keepdim=keepdim))

    def do_sum(self, x: Piped, dim: Any = None, keepdim: bool = False) -> Piped:
        axes = [dim] if isinstance(dim, int) else list(dim or [0])
        if any(axis % x.sample.dim() == 0 for axis in axes):
            raise UncoveredError("a sum over the batch")
        return self.linear_map(x, lambda values: values.sum(axes, keepdim=keepdim))

    def do_max_pool2d(
        self,
        x: Piped,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Piped:
        if return_indices:
            raise UncoveredError("max pooling with indices")
        own = {"kernel": kernel_size, "stride": stride or kernel_size, "padding": padding}
        how = {key: pair(value) for key, value in {**own, "dilation": dilation}.items()}
        shaped = functional.max_pool2d(
            x.sample, how["kernel"], how["stride"], how["padding"], how["dilation"], ceil_mode
        )
        return self.add(MaxPooling, x, **how, output=pair(shaped.shape[2:]))

    def do_adaptive_max_pool2d(self, x: Piped, output_size: Any, return_indices: bool = False) -> Piped:
        size = pair(output_size)
        if return_indices or any(x.shape[axis + 1] % size[axis] for axis in (0, 1)):
            raise UncoveredError("adaptive max pooling with unequal windows")
        kernel = tuple(x.shape[axis + 1] // size[axis] for axis in (0, 1))
        return self.do_max_pool2d(x, kernel)

    def do_pad(self, x: Piped, pad: Any, mode: str = "constant", value: float | None = None) -> Piped:
        if mode == "constant" and value not in (None, 0, 0.0):
            raise UncoveredError("padding with a value other than zero")
        if len(pad) > 2 * len(x.shape):
            raise UncoveredError("padding of the batch")
        return self.framed(x, list(pad), mode)

    def framed(self, x: Piped, sides: list[int], mode: str = "constant") -> Piped:
        """Append padding."""
        return self.linear_map(x, lambda values: functional.pad(values, sides, mode=mode))

    # Shapes.

    def do_flatten(self, x: Piped, start_dim: int = 0, end_dim: int = -1) -> Piped:
        return self.reshaped(x, x.sample.flatten(start_dim, end_dim))

    def do_reshape(self, x: Piped, *shape: Any) -> Piped:
        return self.reshaped(x, x.sample.reshape(*shape))

    do_view = do_reshape

    def do_unflatten(self, x: Piped, dim: int, sizes: Any) -> Piped:
        return self.reshaped(x, torch.unflatten(x.sample, dim, sizes))

    def do_squeeze(self, x: Piped, *dim: Any) -> Piped:
        return self.reshaped(x, x.sample.squeeze(*dim))

    def do_unsqueeze(self, x: Piped, dim: int) -> Piped:
        return self.reshaped(x, x.sample.unsqueeze(dim))

    def do_permute(self, x: Piped, *dims: Any) -> Piped:
        order = list(dims[0]) if isinstance(dims[0], tuple | list) else list(dims)
        if order[0] % x.sample.dim() != 0:
            raise UncoveredError("a permutation of the batch")
        return self.linear_map(x, lambda values: values.permute(order), keeps_boxes=True)

    def do_transpose(self, x: Piped, dim0: int, dim1: int) -> Piped:
        if 0 in (dim0 % x.sample.dim(), dim1 % x.sample.dim()):
            raise UncoveredError("a permutation of the batch")
        return self.linear_map(x, lambda values: values.transpose(dim0, dim1), keeps_boxes=True)

    def do_getitem(self, x: Piped, index: Any) -> Piped:
        parts = index if isinstance(index, tuple) else (index,)
        if parts[0] not in (slice(None), Ellipsis) or not all(isinstance(p, slice | int) for p in parts[1:]):
            raise UncoveredError("indexing of the batch")
        return self.linear_map(x, lambda values: values[parts], keeps_boxes=True)

    def do_identity(self, x: Piped, *_more: Any, **_how: Any) -> Piped:
        return x

    do_contiguous = do_clone = do_detach = do_identity

    def do_dropout(self, x: Piped, p: float = 0.5, training: bool = True, inplace: bool = False) -> Piped:  # noqa: ARG002
        if training:
            raise UncoveredError("dropout that stays switched on")
        return x

    # Arithmetic.

    def do_add(self, first: Any, second: Any, alpha: float = 1.0) -> Piped:
        return self.summed(first, second, float(alpha))

    def do_sub(self, first: Any, second: Any, alpha: float = 1.0) -> Piped:
        return self.summed(first, second, -float(alpha))

    def do_rsub(self, first: Any, second: Any) -> Piped:
        return self.summed(second, first, -1.0)

    def summed(self, first: Any, second: Any, factor: float) -> Piped:
        """Append first + factor · second."""
        if isinstance(first, Piped) and isinstance(second, Piped):
            if first.shape != second.shape:
                raise UncoveredError("a sum of tensors of two shapes")
            return self.add(Sum, first, second, factor=factor)
        if isinstance(first, Piped):
            shift = factor * as_tensor(second, first)
            return self.scaled(first, torch.ones_like(shift), shift)
        shift = as_tensor(first, second)
        return self.scaled(second, factor * torch.ones_like(shift), shift)

    def do_mul(self, first: Any, second: Any) -> Piped:
        if isinstance(first, Piped) and isinstance(second, Piped):
            raise UncoveredError("a product of two intermediate results")
        x, factor = (first, second) if isinstance(first, Piped) else (second, first)
        scale = as_tensor(factor, x)
        return self.scaled(x, scale, torch.zeros_like(scale))

    def do_div(self, first: Any, second: Any) -> Piped:
        if isinstance(second, Piped):
            raise UncoveredError("a division by an intermediate result")
        scale = 1.0 / as_tensor(second, first)
        return self.scaled(first, scale, torch.zeros_like(scale))

    do_truediv = do_div

    def do_neg(self, x: Piped) -> Piped:
        return self.do_mul(x, -1.0)

    def do_cat(self, tensors: Sequence[Any], dim: int = 0) -> Piped:
        given = list(tensors)
        if not all(isinstance(one, Piped) for one in given):
            raise UncoveredError("a concatenation with a constant")
        axis = dim % given[0].sample.dim()
        if axis == 0:
            raise UncoveredError("a concatenation of batches")
        return self.add(Concatenation, *given, axis=axis)

    do_concat = do_cat


def as_tensor(value: Any, like: Piped) -> Tensor:
    """A number or a constant tensor in float64, on the device of ``like``."""
    if not isinstance(value, Tensor | float | int):
        raise UncoveredError(f"arithmetic with {type(value).__name__}")
    found = torch.as_tensor(value).detach().to(like.sample.device, torch.float64)
    # A constant without a batch dimension broadcasts from the right, as torch does it.
    return found.view(*[1] * (like.sample.dim() - found.dim()), *found.shape)
