"""A faster equivalent of a model for searches.

A search may use reduced precision and folded batch norm; its verdict may not. Successes are checked on the
exact model, during the search by :func:`attacks_pool.search.ascent.fooled` and at the end by the verifier.
"""

from __future__ import annotations

import contextlib
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.fast.float32 import float32_alone
from attacks_pool.fast.thin import ThinConv, is_thin, thin

WORTHWHILE = 500_000
"""Multiply-adds per image from which a fast copy, or bfloat16, saves time; below, converting costs more."""
CACHED = 100_000
"""Number of image values that go through a model at once on a CPU.

More would not fit into its caches, and outputs above some 10 MB would be allocated anew each time.
"""
LARGEST_GAP = 0.05
"""Largest mean difference of logits, in standard deviations of the logits, at which a copy is accepted."""
LEAST_AGREEMENT = 0.95
"""Share of predictions on which the copy must agree with the model."""


class SearchModel(nn.Module):
    """Holds ``fast`` for searching and ``exact`` for checking; both map (N, C, H, W) to logits (N, K)."""

    def __init__(self, exact: nn.Module, fast: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.exact, self.fast, self.dtype = exact, fast, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the fast model, in float32."""
        at_once = max(CACHED // max(x[:1].numel(), 1), 16) if x.device.type == "cpu" else len(x)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            if len(x) <= at_once:
                return self._logits(x)
            return torch.cat([self._logits(part) for part in torch.split(x, at_once)])

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fast(x.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def exact_logits(self, x: Tensor) -> Tensor:
        """Logits of the exact model, without gradients."""
        return logits_of(self.exact, x)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) of the exact model, in eval mode, in float32 and without gradients.

    The verifier has its own implementation, which searches must not share.
    """
    with float32_alone(x.device), torch.no_grad(), evaluation_mode(model):
        return torch.as_tensor(model(x)).float()


def search_model(model: nn.Module, x: Tensor, *, reduced: bool) -> nn.Module:
    """A faster copy of ``model`` to search around ``x``, or ``model`` itself if no copy is accurate enough.

    Batch norm is folded into the convolution before it, pooling moves before ReLU, the gradient to the images
    is a matrix product, convolutions run channels-last, and weights need no gradients. ``reduced`` uses
    bfloat16 if the device supports it in hardware. The copy must nearly reproduce the outputs of the model on
    ``x`` and on nearby points. This excludes models that keep state between calls, are random or hide their
    gradients.
    """
    reduced = reduced and has_bfloat16(x.device)
    normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    thinned = x.device.type == "cpu" and any(is_thin(module) for module in model.modules())
    costly = (reduced or (thinned and not normed)) and worthwhile(model, x)
    if not normed and not costly:
        return model
    dtype = torch.bfloat16 if reduced and costly else None
    try:
        with evaluation_mode(model):
            fast = quicken(deepcopy(model).eval().requires_grad_(False))
            if dtype is not None:
                lower_precision(fast, dtype)
        fast = fast.to(memory_format=torch.channels_last)
        candidate = SearchModel(model, fast, dtype or torch.float32)
        with torch.no_grad(), evaluation_mode(model):
            return candidate if _agree(candidate, model, x[:64]) else model
    except Exception:  # third-party modules may fail to be copied, traced or run in another precision
        return model


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def quicken(model: nn.Module) -> nn.Module:
    """Rewrite ``model`` in place into fewer or faster operations; its weights must be frozen."""
    return thin(pool_first(fold(model)))


def fold(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it if nothing else uses that; changes ``model``.

    Tracing finds the pairs; a model that cannot be traced stays unchanged.
    """
    modules = dict(model.named_modules())
    for before, after in foldable(model):
        conv, norm = modules[before], modules[after]
        _replace(model, before, fuse_conv_bn_eval(conv, norm))
        _replace(model, after, nn.Identity())
    return model


def foldable(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names of a convolution in ``model`` and of the batch norm that can be folded into it."""
    modules = dict(model.named_modules())
    return [
        (first, then)
        for first, then in _only_reader(model, nn.Conv2d, nn.BatchNorm2d)
        if modules[then].track_running_stats and not modules[then].training
    ]


def pool_first(model: nn.Module) -> nn.Module:
    """Swap each ReLU with the max pooling after it if nothing else uses the ReLU; changes ``model``.

    max(ReLU(z)) = ReLU(max(z)) bit for bit, gradients included, and ReLU then processes fewer values.
    """
    modules = dict(model.named_modules())
    for relu, pool in _only_reader(model, nn.ReLU, nn.MaxPool2d):
        if not modules[pool].return_indices:
            _replace(model, relu, modules[pool])
            _replace(model, pool, modules[relu])
    return model


def _only_reader(model: nn.Module, first: type[nn.Module], then: type[nn.Module]) -> list[tuple[str, str]]:
    """Pairs of names where a ``then`` module is the only consumer of the output of a ``first`` module.

    Both are called once and have no hooks. A model that cannot be traced has no such pairs.
    """
    modules = dict(model.named_modules())
    if not all(any(type(module) is kind for module in modules.values()) for kind in (first, then)):
        return []
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception:  # for example data-dependent control flow
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    used = [node.target for node in calls]
    found = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module":
            continue
        alone = len(before.users) == 1 and used.count(node.target) == 1 and used.count(before.target) == 1
        pair = modules[str(before.target)], modules[str(node.target)]
        if alone and type(pair[0]) is first and type(pair[1]) is then and not any(map(_is_watched, pair)):
            found.append((str(before.target), str(node.target)))
    return found


def _is_watched(module: nn.Module) -> bool:
    """Whether the module has hooks, which may read or change its inputs and outputs."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


class _Float32(nn.Linear):
    """A linear layer that always computes in float32, even under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight, self.bias)


def lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert weights once that autocast would otherwise round at every call; the results are the same.

    The last linear layer stays in float32: bfloat16 has 8 significant bits, too few for logits that must
    distinguish neighbouring points.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if layers and type(layers[-1]) is nn.Linear:
        layers[-1].__class__ = _Float32
    for module in model.modules():
        if type(module) in (nn.Conv2d, ThinConv, nn.Linear):
            module.to(dtype)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _agree(candidate: SearchModel, model: nn.Module, x: Tensor) -> bool:
    """Whether both models nearly agree on ``x`` and on nearby points, and ``model`` repeats its outputs."""
    ramp = torch.linspace(-0.1, 0.1, x[0].numel(), device=x.device).view(1, *x.shape[1:])
    for points in (x, (x + ramp).clamp(0, 1)):
        exact, fast = logits_of(model, points), candidate(points)
        if not torch.equal(exact, logits_of(model, points)):
            return False
        gap = (exact - fast).abs().mean() / exact.std().clamp_min(1e-12)
        same = (exact.argmax(1) == fast.argmax(1)).float().mean()
        if not (gap <= LARGEST_GAP and same >= LEAST_AGREEMENT):
            return False
    return True


def pays_in_bfloat16(model: nn.Module, x: Tensor) -> bool:
    """Whether the device supports bfloat16 in hardware and the model is costly enough to gain from it."""
    return has_bfloat16(x.device) and worthwhile(model, x)


def worthwhile(model: nn.Module, x: Tensor) -> bool:
    """Whether the model needs enough arithmetic per image for a faster copy to save time.

    It counts operations instead of measuring time, so that every run decides in the same way.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with contextlib.suppress(Exception), torch.no_grad(), evaluation_mode(model), counter:
        model(x[:1])
    return counter.get_total_flops() >= 2 * WORTHWHILE
