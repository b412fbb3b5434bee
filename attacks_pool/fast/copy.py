"""The model that a search runs on: the same function, computed faster.

A search may look at reduced precision, with batch norm folded; its verdict may not. What it finds is
checked on the model as it is, by :func:`attacks_pool.search.ascent.fooled` on the way and by the verifier
at the end.
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
"""Multiply-adds an image from which a copy pays, and bfloat16; below, rounding costs more than it gains."""
CACHED = 100_000
"""Values of images that go through a model at once on a processor.

More would fall out of its caches, and layers whose output exceeds some 10 MB get fresh pages each time.
"""
LARGEST_GAP = 0.05
"""Mean difference of logits, in standard deviations of the logits, up to which a search model is believed."""
LEAST_AGREEMENT = 0.95
"""Share of predictions that a search model must have in common with the model itself."""


class SearchModel(nn.Module):
    """``fast`` to search on and ``exact`` to believe; both map images (N, C, H, W) to logits (N, K)."""

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
        """Logits of the model as it is, without gradients."""
        return logits_of(self.exact, x)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) of a model as it is, in eval mode, float32 and without gradients.

    The verifier has a prediction of its own, which no search may share.
    """
    with float32_alone(x.device), torch.no_grad(), evaluation_mode(model):
        return torch.as_tensor(model(x)).float()


def search_model(model: nn.Module, x: Tensor, *, reduced: bool) -> nn.Module:
    """A faster form of ``model`` for a search around ``x``, or ``model`` itself where none can be trusted.

    Batch norm is folded into the convolution before it, pooling comes before a ReLU, the gradient to the
    images is a matrix product, convolutions run channels-last, weights ask for no gradients, and with
    ``reduced`` the arithmetic is bfloat16 where the device has instructions for it. The copy must say nearly
    what the model says of ``x`` (and of noisy neighbours), else the model itself is searched: a copy of
    something that keeps state, draws at random or hides its gradients is no copy.
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
    except Exception:  # a stranger's module may refuse to be copied, traced or run in another precision
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
    """The same function in fewer or faster operations; changes ``model``, whose weights are frozen."""
    return thin(pool_first(fold(model)))


def fold(model: nn.Module) -> nn.Module:
    """Batch norm folded into the convolution whose only reader it is; changes ``model`` and returns it.

    Pairs are found by tracing; a model that cannot be traced is left as it is.
    """
    modules = dict(model.named_modules())
    for before, after in foldable(model):
        conv, norm = modules[before], modules[after]
        _replace(model, before, fuse_conv_bn_eval(conv, norm))
        _replace(model, after, nn.Identity())
    return model


def foldable(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions in ``model``, and of the batch norm that folds into each, in eval mode."""
    modules = dict(model.named_modules())
    return [
        (first, then)
        for first, then in _only_reader(model, nn.Conv2d, nn.BatchNorm2d)
        if modules[then].track_running_stats and not modules[then].training
    ]


def pool_first(model: nn.Module) -> nn.Module:
    """ReLU and the max pooling that alone reads it change places; changes ``model`` and returns it.

    max(ReLU(z)) = ReLU(max(z)) bit for bit, gradients included, and the ReLU meets fewer values.
    """
    modules = dict(model.named_modules())
    for relu, pool in _only_reader(model, nn.ReLU, nn.MaxPool2d):
        if not modules[pool].return_indices:
            _replace(model, relu, modules[pool])
            _replace(model, pool, modules[relu])
    return model


def _only_reader(model: nn.Module, first: type[nn.Module], then: type[nn.Module]) -> list[tuple[str, str]]:
    """Names of modules of type ``first`` and of the ``then`` that alone reads each, both once, without hooks.

    Pairs are found by tracing; in a model that cannot be traced there are none.
    """
    modules = dict(model.named_modules())
    if not all(any(type(module) is kind for module in modules.values()) for kind in (first, then)):
        return []
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception:  # data-dependent control flow, say
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
    """Whether hooks look at what the module gets or gives, and may change it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


class _Float32(nn.Linear):
    """A linear layer that computes in float32 also where the rest does not."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight, self.bias)


def lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights that autocast would round at every call, rounded once: the same numbers, sooner.

    The last linear layer stays in float32: bfloat16 keeps 8 bits, and a search could not tell neighbouring
    points apart by such logits.
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
    """Whether both say nearly the same of ``x`` and of points beside it, also when asked twice."""
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
    """Whether the device has instructions for bfloat16, and an image costs enough arithmetic."""
    return has_bfloat16(x.device) and worthwhile(model, x)


def worthwhile(model: nn.Module, x: Tensor) -> bool:
    """Whether an image costs so much arithmetic that a faster copy pays.

    A count, not a clock, so that every run decides alike.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with contextlib.suppress(Exception), torch.no_grad(), evaluation_mode(model), counter:
        model(x[:1])
    return counter.get_total_flops() >= 2 * WORTHWHILE
