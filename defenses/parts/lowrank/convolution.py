"""A convolution with a low-rank adapter for each task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.fast.thin import has_few_channels, thin_conv2d
from defenses.parts.lowrank.layer import AdaptedLayer, Mix, check_batch
from defenses.parts.lowrank.routing import Routing


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):
    """y = W * x + s · Σ_e w_e(x) · B_e (A_e * x) + b, that is, W_e = W + s·B_e A_e for a sample of task e.

    A_e (r, C_in, k, k) is a convolution to r channels with the same stride, padding and dilation; B_e
    (C_out, r) maps back; r is ``rank``, limited to the rank that W can have. All E adapters take one pass:
    the A_e are concatenated to one convolution to E·r channels, each sample's weights w (N, E) scale these
    channels, and the B_e are concatenated to one 1×1 convolution back. A batch of a single task uses W_e.

    A convolution of several groups, whose A_e are (r, C_in/groups, k, k), has no such common form: there each
    sample's own W + s·Σ_e w_e·B_e A_e is made, and the samples are groups of one convolution.

    Args:
        conv: the convolution; its parameters themselves become the backbone's.
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
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.training = conv.training
        self._adapt(routing, rank=rank, scale=scale)

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
        check_batch(len(input), len(route.weights))
        if self.groups > 1:
            return self._by_sample(input, route.weights)
        weight, bias, back = self._once("side by side", self._side_by_side)
        both = self._convolved(input, weight, bias)
        out, thin = torch.split(both, [self.out_channels, both.shape[1] - self.out_channels], 1)
        gate = self._gate(route.weights, thin.dtype)
        return _lead_back(out, thin * gate[:, :, None, None], back)

    def _by_sample(self, x: Tensor, weights: Tensor) -> Tensor:
        """The output (N, C_out, H', W') with a weight of its own for each sample."""
        up, down = self._once(
            "stacked", lambda: (torch.cat(list(self.up), 1), torch.cat(list(self.down)).flatten(1))
        )
        change = (up * self._gate(weights, up.dtype)[:, None]) @ down
        own = (self.weight + change.view(-1, *self.weight.shape)).flatten(0, 1)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        bias = None if self.bias is None else self.bias.repeat(len(x))
        groups = len(x) * self.groups
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), own, bias, self.stride, padding, self.dilation, groups)
        return out.view(len(x), -1, *out.shape[2:])

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

    def plain(self, mix: Mix) -> nn.Conv2d:
        """An equivalent plain convolution for a whole batch; its parameters are copies."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
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
