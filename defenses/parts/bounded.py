"""Interval bounds of a classifier: which of its operations have them, and what the logits can become."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from attacks_pool.errors import InputError
from defenses.parts.intervals import Interval, activated, worst_of_linear, worst_of_logits

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INCREASING = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.SELU),
    *(nn.Softplus, nn.Softsign, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d),
)
"""Modules that never decrease in any input."""
ACTIVATIONS: dict[type, tuple[str, tuple[str, ...]]] = {
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ELU: ("elu", ("alpha",)),
}
"""Other activations: their function in torch.nn.functional, and their settings."""
SELECTING = (nn.Flatten, nn.Unflatten, nn.Identity, nn.ZeroPad2d)
IDLE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Modules that do nothing in eval mode."""
FUNCTIONS = {
    *(torch.relu, F.relu, F.relu6, F.hardtanh, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh, F.softplus),
    *(F.logsigmoid, F.avg_pool2d, F.adaptive_avg_pool2d, F.max_pool2d, torch.max_pool2d, torch.mean),
}
"""Functions that never decrease in any value of their first argument."""
SHAPES = {
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "contiguous",
    "unflatten",
}
METHODS = {"relu", "sigmoid", "tanh", "mean", "clamp"}
CASTS = {"float", "double", "to", "half", "bfloat16"}
SIZES = {"size", "dim"}


class _Tracer(fx.Tracer):
    """Takes normalisations as one operation, since their checks may need values."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return _is_normalisation(module) or super().is_leaf_module(module, name)


def _is_normalisation(module: nn.Module) -> bool:
    """Whether a module computes (x − mean) / std with buffers of these names."""
    own = dict(module.named_buffers())
    return set(own) == {"mean", "std"} and not list(module.parameters()) and bool((own["std"] > 0).all())


class Bounded:
    """The operations of a classifier, for bounds of its logits on intervals of images.

    Args:
        model: images (N, C, H, W) to logits (N, K); it is traced once, and its weights are read anew for each
            bound.
        name: the defense that needs the bounds, for errors.

    Raises:
        InputError: the model cannot be traced.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        try:
            self.graph = _Tracer().trace(model)
        except Exception as error:  # any code of a third-party model may fail on a symbolic input
            raise self._refused(
                f"a model that cannot be traced ({' '.join(str(error).split())[:200]})"
            ) from error

    def worst_logits(self, x: Interval, y: Tensor) -> Tensor:
        """ẑ (N, K): for each class k an upper bound of z_k − z_y for all images in ``x``, 0 at the label.

        If the last operation is a linear layer, it bounds the differences themselves. Batch norm uses its
        running statistics and dropout does nothing, as in the finished network.

        Args:
            x: the images (N, C, H, W).
            y: labels (N,).

        Raises:
            InputError: an operation of the model has no bounds; the message names it.
        """
        found: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                found[node] = x if not found else node.args[0] if node.args else None
                continue
            args, kwargs = (fx.node.map_arg(given, found.__getitem__) for given in (node.args, node.kwargs))
            if node.op == "output":
                last = args[0].get("logits") if isinstance(args[0], dict) else args[0]
                if not isinstance(last, Interval) or last.low.dim() != 2:
                    raise self._refused("a model whose output is not logits (N, K)")
                return worst_of_logits(last, y)
            module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
            if type(module) is nn.Linear and [user.op for user in node.users] == ["output"]:
                return worst_of_linear(args[0], module.weight, module.bias, y)
            found[node] = self._result(node, module, args, kwargs)
            if node.op == "call_function" and node.target is operator.iadd:
                found[node.args[0]] = found[node]
        raise self._refused("a model without an output")

    def _result(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        name = getattr(node.target, "__name__", str(node.target))
        shown = name if module is None else f"{type(module).__name__} ({node.target})"
        x = args[0] if args else None
        try:
            if not any(isinstance(one, Interval) for one in (*args, *kwargs.values(), *_inside(x))):
                if node.op == "call_method":
                    return getattr(x, name)(*args[1:], **kwargs)
                assert callable(node.target)
                return node.target(*args, **kwargs)
            if module is not None:
                result = _of_module(module, x) if isinstance(x, Interval) else None
            elif node.op == "call_method":
                result = _of_method(name, x, args[1:], kwargs)
            else:
                result = _of_function(node.target, name, args, kwargs)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise self._refused(
                f"{shown} with these arguments ({' '.join(str(error).split())[:200]})"
            ) from error
        if result is None:
            raise self._refused(shown)
        return result

    def _refused(self, what: str) -> InputError:
        return InputError(
            f"{self.name} has no bounds for {what}: it trains networks of convolutions, linear layers, batch "
            "norm, activations, pooling, additions and changes of shape"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _inside(x: Any) -> list[Any]:
    return list(x) if isinstance(x, list | tuple) else []


def _of_module(module: nn.Module, x: Interval) -> Interval | None:
    kind = type(module)
    if isinstance(module, CONVOLUTIONS) and kind in CONVOLUTIONS:
        if module.padding_mode != "zeros":
            # Padding that repeats values would count them twice in a length of weights.
            x = Interval(x.low, x.high)
        return x.affine(module.weight, module.bias, module._conv_forward)
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        return x.affine(module.weight, module.bias, F.linear)
    if isinstance(module, NORMS) and kind in NORMS:
        return _normalised(x, module)
    if kind in ACTIVATIONS:
        name, settings = ACTIVATIONS[kind]
        return activated(x, name, **{key: getattr(module, key) for key in settings})
    if kind in IDLE:
        return x
    if kind in SELECTING:
        return x.selecting(module)
    if kind in INCREASING:
        return None if getattr(module, "return_indices", False) else x.increasing(module)
    if _is_normalisation(module):
        mean, std = module.get_buffer("mean"), module.get_buffer("std")
        return x.scaled(1 / std, -mean / std)
    return None


def _normalised(x: Interval, module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Interval | None:
    """The image under batch norm by its running statistics; None if it has none."""
    if module.running_mean is None or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight
    shift = -module.running_mean * scale
    if module.affine:
        shift = shift + module.bias
    shape = (1, -1, *[1] * (x.low.dim() - 2))
    return x.scaled(scale.view(shape), shift.view(shape))


def _of_method(name: str, x: Any, args: Any, kwargs: Any) -> Any:
    if not isinstance(x, Interval):
        return None
    if name in SIZES:
        return getattr(x.low, name)(*args, **kwargs)
    if name in SHAPES or name in CASTS:
        return x.selecting(lambda values: getattr(values, name)(*args, **kwargs))
    if name in METHODS:
        return x.increasing(lambda values: getattr(values, name)(*args, **kwargs))
    return _arithmetic(name, x, *args) if len(args) == 1 and not kwargs else None


def _of_function(target: Any, name: str, args: Any, kwargs: Any) -> Any:
    x, *more = args
    if target is getattr:
        return x.low.shape if more == ["shape"] else None
    if target is F.dropout:
        return x
    if target is torch.cat and all(isinstance(one, Interval) for one in x):
        return Interval(
            *(torch.cat([getattr(one, end) for one in x], *more, **kwargs) for end in ("low", "high"))
        )
    if isinstance(x, Interval):
        if name in SHAPES and hasattr(torch, name) and target is getattr(torch, name):
            return x.selecting(lambda values: target(values, *more, **kwargs))
        if target in FUNCTIONS:
            return x.increasing(lambda values: target(values, *more, **kwargs))
        settings = {key: value for key, value in kwargs.items() if key != "inplace"}
        if not more and (found := activated(x, name, **settings)) is not None:
            return found
    return None if kwargs else _arithmetic(name, *args)


def _arithmetic(name: str, first: Any, second: Any) -> Interval | None:
    """Sums, differences, and products with constants; None for anything else."""
    name = name.removeprefix("i") if name in ("iadd", "isub", "imul") else name
    if isinstance(first, Interval) and isinstance(second, Interval):
        return first.plus(second) if name == "add" else first.minus(second) if name == "sub" else None
    x, constant = (first, second) if isinstance(first, Interval) else (second, first)
    value = torch.as_tensor(constant, dtype=x.low.dtype, device=x.low.device)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    known = {"add": (one, value), "mul": (value, zero)}
    if x is first:
        known |= {"sub": (one, -value), "truediv": (1 / value, zero)}
    else:
        known |= {"sub": (-one, value)}
    return x.scaled(*known[name]) if name in known else None
