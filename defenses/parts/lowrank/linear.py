"""Linear layers, and multi-head attention, with a low-rank adapter for each task."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from defenses.parts.lowrank.layer import AdaptedLayer, Mix, check_batch
from defenses.parts.lowrank.routing import Routing

Attended = tuple[Tensor, Tensor | None]
"""The output, and the weights of attention if they are needed."""
Attend = Callable[..., Attended]


class _Projection(AdaptedLayer):
    """A layer whose weight (C_out, C_in) maps the last dimension."""

    def projected(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """W_e x + ``bias`` for x (N, …, C_in)."""
        route = self.routing.route
        if route.weights is None:
            return F.linear(x, self._once(route.task, lambda: self.merged_weight(route.task)), bias)
        check_batch(len(x), len(route.weights))
        return self._side_by_side(x, route.weights, bias)

    def _side_by_side(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        down, up = self._once("stacked", lambda: (torch.cat(list(self.down)), torch.cat(list(self.up), 1)))
        thin = F.linear(x, down)
        gate = self._gate(weights, thin.dtype).view(len(x), *[1] * (x.dim() - 2), -1)
        return F.linear(x, self.weight, bias) + F.linear(thin * gate, up)


class AdaptedLinear(_Projection, nn.Linear):
    """y = W x + s · Σ_e w_e(x) · B_e A_e x + b, for all positions of a sample.

    A_e is (r, C_in) and B_e (C_out, r). All E adapters take one pass, as in ``AdaptedConv2d``.

    Args:
        linear: the layer; its parameters themselves become the backbone's.
        routing: holds the current batch's route.
        rank: r.
        scale: s.
    """

    def __init__(self, linear: nn.Linear, routing: Routing, *, rank: int, scale: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.kind: type[nn.Linear] = type(linear)
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self._adapt(routing, rank=rank, scale=scale)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, …, C_in) to (N, …, C_out).

        Raises:
            InputError: the network changed the size of the batch before this layer.
        """
        return self.projected(input, self.bias)

    def plain(self, mix: Mix) -> nn.Linear:
        """An equivalent plain layer for a whole batch; its parameters are copies."""
        linear = self.kind(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.merged_weight(mix).detach().clone())
        linear.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)


class AdaptedAttention(_Projection, nn.MultiheadAttention):
    """Multi-head attention whose joint projection to queries, keys and values, and whose output, are adapted.

    The joint projection has one pair A_e (r, C), B_e (3·C, r). ``nn.MultiheadAttention`` never calls its
    projections as modules, so this class gives torch the weights of a task, or projects by itself where each
    sample has its own.

    Args:
        attention: the layer, with one width of queries, keys and values; its parameters themselves become the
            backbone's.
        routing: holds the current batch's route.
        rank: r.
        scale: s.
    """

    def __init__(
        self, attention: nn.MultiheadAttention, routing: Routing, *, rank: int, scale: float
    ) -> None:
        super().__init__(
            attention.embed_dim,
            attention.num_heads,
            attention.dropout,
            bias=attention.in_proj_bias is not None,
            add_zero_attn=attention.add_zero_attn,
            batch_first=attention.batch_first,
            device="meta",
        )
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.out_proj = AdaptedLinear(attention.out_proj, routing, rank=rank, scale=scale)  # type: ignore[assignment]
        self.training = attention.training
        # Encoder layers then call this module, in place of a fused kernel that reads the weights alone.
        self._qkv_same_embed_dim = False
        self._adapt(routing, rank=rank, scale=scale)

    @property
    def output(self) -> AdaptedLinear:
        """The output projection."""
        found: nn.Module = self.out_proj
        assert isinstance(found, AdaptedLinear)
        return found

    @property
    def weights(self) -> list[Tensor]:
        """Both projections, each of which has a pair of its own."""
        return [self.in_proj_weight, self.output.weight]

    @property
    def sample_dimension(self) -> int:
        """As ``batch_first`` says."""
        return 0 if self.batch_first else 1

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The joint projection (3·C, C)."""
        return self.in_proj_weight

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Attended:
        """Attend as ``nn.MultiheadAttention`` does, to batches only.

        Raises:
            InputError: the network changed the size of the batch before this layer.
        """
        attend = functools.partial(
            F.multi_head_attention_forward,
            embed_dim_to_check=self.embed_dim,
            num_heads=self.num_heads,
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            add_zero_attn=self.add_zero_attn,
            dropout_p=self.dropout,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        mixed = self.routing.route.weights is not None
        out, attention = (self._mixed if mixed else self._whole)(attend, query, key, value)
        return out, attention

    def _whole(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Attend with the same weights for all samples."""
        task = self.routing.route.task
        # Torch projects once what it is given three times.
        given = {id(one): self._turned(one) for one in (query, key, value)}
        out, attention = attend(
            *(given[id(one)] for one in (query, key, value)),
            in_proj_weight=self._once(task, lambda: self.merged_weight(task)),
            in_proj_bias=self.in_proj_bias,
            out_proj_weight=self.output._once(task, lambda: self.output.merged_weight(task)),
            out_proj_bias=self.output.bias,
        )
        return self._turned(out), attention

    def _mixed(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Attend with adapters of its own for each sample; torch's projections are the identity."""
        turned = self.batch_first
        given = [one if turned else one.transpose(0, 1) for one in (query, key, value)]
        alike = query is key and key is value
        joint = [self.projected(one, self.in_proj_bias) for one in (given[:1] if alike else given)]
        parts = [joint[0 if alike else place].chunk(3, -1)[place].transpose(0, 1) for place in range(3)]
        same = torch.eye(self.embed_dim, dtype=parts[0].dtype, device=parts[0].device)
        attended, attention = attend(
            *parts,
            in_proj_weight=None,
            in_proj_bias=None,
            use_separate_proj_weight=True,
            q_proj_weight=same,
            k_proj_weight=same,
            v_proj_weight=same,
            out_proj_weight=same,
            out_proj_bias=None,
        )
        out: Tensor = self.output(attended.transpose(0, 1))
        return out if turned else out.transpose(0, 1), attention

    def _turned(self, x: Tensor) -> Tensor:
        """Between (N, L, C) and torch's (L, N, C), if the batch comes first."""
        return x.transpose(0, 1) if self.batch_first else x

    def plain(self, mix: Mix) -> nn.MultiheadAttention:
        """An equivalent plain layer for a whole batch; its parameters are copies."""
        plain = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            bias=self.in_proj_bias is not None,
            add_zero_attn=self.add_zero_attn,
            batch_first=self.batch_first,
            device="meta",
        )
        plain.in_proj_weight = nn.Parameter(self.merged_weight(mix).detach().clone())
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            own = getattr(self, name)
            setattr(plain, name, None if own is None else nn.Parameter(own.detach().clone()))
        out = self.output.plain(mix)
        assert isinstance(out, NonDynamicallyQuantizableLinear)
        plain.out_proj = out
        return plain.train(self.training)
