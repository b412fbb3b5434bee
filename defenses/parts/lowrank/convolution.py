"""A convolution with a low-rank adapter for each task."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.errors import InputError
from attacks_pool.fast.thin import has_few_channels, thin_conv2d
from defenses.parts.lowrank.routing import Routing

Made = TypeVar("Made")
Mix = int | Tensor | None
"""A task, fixed weights (E,) of all tasks, or None for the backbone alone."""


class AdaptedConv2d(nn.Conv2d):
    """y = W * x + s · Σ_e w_e(x) · B_e (A_e * x) + b, that is, W_e = W + s·B_e A_e for a sample of task e.

    A_e (r, C_in, k, k) is a convolution to r channels with the same stride, padding and dilation; B_e
    (C_out, r) maps back; r is ``rank``, limited to the rank that W can have. All E adapters take one pass:
    the A_e are concatenated to one convolution to E·r channels, each sample's weights w (N, E) scale these
    channels, and the B_e are concatenated to one 1×1 convolution back. A batch of a single task uses W_e.

    A_e is initialised like a convolution and B_e with 0, so that a new adapter changes nothing.

    Args:
        conv: the convolution, with groups=1; its parameters themselves become the backbone's.
        routing: holds the current batch's route.
        rank: r.
        scale: s.
    """

    def __init__(self, conv: nn.Conv2d, routing: Routing, *, rank: int, scale: float) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.training = conv.training
        self.routing, self.scale = routing, scale
        self.rank = min(rank, self.out_channels, self.weight[0].numel())
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        self._kept: dict[int | str | None, Any] | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, weights do not change or need gradients, so combined weights are computed only once."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def add_task(self, generator: torch.Generator) -> None:
        """Add one more adapter, on the device of the weights."""
        shape = (self.rank, *self.weight.shape[1:])
        bound = 1 / math.sqrt(self.weight[0].numel())
        draws = torch.rand(shape, generator=generator) * (2 * bound) - bound
        self.down.append(nn.Parameter(draws.to(self.weight)))
        self.up.append(nn.Parameter(self.weight.new_zeros(self.out_channels, self.rank)))

    def remove_tasks(self) -> None:
        """Remove all adapters."""
        self.down, self.up = nn.ParameterList(), nn.ParameterList()

    def merged_weight(self, mix: Mix) -> Tensor:
        """W + s·B_e A_e for one task, or W + s·Σ_e w_e·B_e A_e for fixed weights."""
        if mix is None:
            return self.weight
        if isinstance(mix, int):
            change: Tensor = self.up[mix] @ self.down[mix].flatten(1)
        else:
            gate = mix.to(self.weight).repeat_interleave(self.rank)
            change = (torch.cat(list(self.up), 1) * gate) @ torch.cat(list(self.down)).flatten(1)
        weight: Tensor = self.weight + self.scale * change.view_as(self.weight)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H', W').

        Raises:
            InputError: the network changed the size of the batch before this layer, so that samples can no
                longer be matched to their tasks.
        """
        route = self.routing.route
        if route.weights is None:
            whole: Tensor = self._once(route.task, lambda: self.merged_weight(route.task))
            return self._convolved(input, whole, self.bias)
        if len(input) != len(route.weights):
            raise InputError(
                f"adapters need each sample in its place: a batch of {len(route.weights)} has become one of "
                f"{len(input)} inside the network"
            )
        weight, bias, back = self._once("side by side", self._side_by_side)
        both = self._convolved(input, weight, bias)
        out, thin = torch.split(both, [self.out_channels, both.shape[1] - self.out_channels], 1)
        # Not repeat_interleave, because its gradient is slow.
        gate = (self.scale * route.weights).to(thin.dtype)[:, :, None].expand(-1, -1, self.rank)
        return _lead_back(out, thin * gate.reshape(len(thin), -1, 1, 1), back)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._kept is not None and has_few_channels(self):
            return thin_conv2d(x, weight, None if bias is None else bias.detach(), self)
        convolved: Tensor = self._conv_forward(x, weight, bias)
        return convolved

    def _side_by_side(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """W and all A_e as one convolution, its bias, and all B_e as one matrix.

        The A_e are additional output channels, so the input is read and its gradient summed only once.
        """
        weight = torch.cat([self.weight, *self.down])
        back = torch.cat(list(self.up), 1)
        bias = None if self.bias is None else F.pad(self.bias, (0, len(weight) - self.out_channels))
        return weight, bias, back

    def _once(self, what: int | str | None, make: Callable[[], Made]) -> Made:
        if self._kept is None:
            return make()
        if what not in self._kept:
            with torch.no_grad():
                self._kept[what] = make()
        made: Made = self._kept[what]
        return made

    def plain(self, mix: Mix) -> nn.Conv2d:
        """An equivalent plain convolution for a whole batch; its parameters are copies."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device="meta",
        )
        conv.weight = nn.Parameter(self.merged_weight(mix).detach().clone())
        conv.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone())
        return conv.train(self.training)


def _lead_back(out: Tensor, thin: Tensor, back: Tensor) -> Tensor:
    """out (N, C, H, W) plus a 1×1 convolution of thin (N, R, H, W) with back (C, R).

    For contiguous planes it is one fused product and sum, about twice as fast as a convolution for small
    images.
    """
    if not thin.is_contiguous():
        return out + F.conv2d(thin, back[:, :, None, None])
    product = torch.baddbmm(out.flatten(2), back.expand(len(thin), -1, -1), thin.flatten(2))
    return product.view_as(out)
