"""A faster copy of a model in training, updated before each search."""

from __future__ import annotations

import contextlib
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.fast.copy import LARGEST_GAP, SearchModel, foldable, lower_precision, quicken

LOOKED_AT = 8
"""Number of points on which the copy is compared with the model before each search."""


class Follower:
    """Provides a faster copy of ``model`` for searches in training, and updates it instead of rebuilding it.

    The copy is like that of :func:`attacks_pool.fast.copy.search_model`: batch norm folded, channels-last, in
    bfloat16. Before each search it receives the current weights and statistics, and its outputs on some
    points must be close to the model's; otherwise the model itself is searched. The decision depends only on
    weights and points, so that resumed training decides in the same way.

    Args:
        model: maps images (N, C, H, W) to logits (N, K); its weights may change, but not its structure.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.fast: nn.Module | None = None
        # Third-party modules may fail to be copied or traced.
        with contextlib.suppress(Exception), evaluation_mode(model):
            self.pairs = dict(foldable(model))
            fast = quicken(deepcopy(model).eval().requires_grad_(False))
            lower_precision(fast, torch.bfloat16)
            self.fast = fast.to(memory_format=torch.channels_last)

    def search_model(self, x: Tensor) -> nn.Module:
        """The module to search around ``x``: the copy, or the model itself if they differ."""
        if self.fast is None:
            return self.model
        try:
            candidate = SearchModel(self.model, self.fast, torch.bfloat16)
            with torch.no_grad(), evaluation_mode(self.model):
                self._take_over(self.fast)
                exact, fast = self.model(x[:LOOKED_AT]).float(), candidate(x[:LOOKED_AT])
            gap = (exact - fast).abs().mean() / exact.std().clamp_min(1e-12)
            return candidate if bool(gap <= LARGEST_GAP) else self.model
        except Exception:  # for example if its structure has changed
            return self.model

    def _take_over(self, fast: nn.Module) -> None:
        """Copy the model's current parameters and buffers."""
        source = dict(self.model.named_modules())
        norms = set(self.pairs.values())
        for name, module in fast.named_modules():
            if name in norms:
                continue
            if name in self.pairs:
                conv, norm = source[name], source[self.pairs[name]]
                weight, bias = fuse_conv_bn_weights(
                    conv.weight,
                    conv.bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
                module.weight.copy_(weight)
                module.bias.copy_(bias)
                continue
            kept = [*source[name].parameters(recurse=False), *source[name].buffers(recurse=False)]
            for own, now in zip(
                [*module.parameters(recurse=False), *module.buffers(recurse=False)], kept, strict=True
            ):
                own.copy_(now)
