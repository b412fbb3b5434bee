"""The modules that have bounds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from advbench.evaluation.certificates.builders import Builders
from advbench.evaluation.certificates.network_steps import Piped, UncoveredError
from advbench.models.normalize import Normalize


def _conv(builders: Builders, module: nn.Conv2d, x: Piped) -> Piped:
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        x = builders.framed(x, list(module._reversed_padding_repeated_twice), module.padding_mode)
        padding = 0
    how = (module.stride, padding, module.dilation, module.groups)
    return builders.do_conv2d(x, module.weight, module.bias, *how)


def _batch_norm(builders: Builders, module: nn.BatchNorm2d, x: Piped) -> Piped:
    if module.training:
        raise UncoveredError("batch norm in training mode")
    statistics = (module.running_mean, module.running_var)
    return builders.do_batch_norm(x, *statistics, module.weight, module.bias, eps=module.eps)


def _normalize(builders: Builders, module: Normalize, x: Piped) -> Piped:
    scale = 1.0 / module.std.double()
    return builders.scaled(x, scale, -module.mean.double() * scale)


def _max_pool(builders: Builders, module: nn.MaxPool2d, x: Piped) -> Piped:
    where = (module.kernel_size, module.stride, module.padding, module.dilation)
    return builders.do_max_pool2d(x, *where, module.ceil_mode, module.return_indices)


def _avg_pool(builders: Builders, module: nn.AvgPool2d, x: Piped) -> Piped:
    if module.divisor_override is not None:
        raise UncoveredError("average pooling with a divisor of its own")
    where = (module.kernel_size, module.stride, module.padding)
    return builders.do_avg_pool2d(x, *where, module.ceil_mode, module.count_include_pad)


def _dropout(builders: Builders, module: nn.Dropout, x: Piped) -> Piped:
    return builders.do_dropout(x, training=module.training)


def _named(name: str, *attributes: str) -> Callable[..., Piped]:
    """Append the operation ``name`` with the module's attributes as arguments."""

    def build(builders: Builders, module: nn.Module, x: Piped) -> Piped:
        builder = builders.known(name)
        assert builder is not None
        result: Piped = builder(x, *(getattr(module, attribute) for attribute in attributes))
        return result

    return build


def _identity(_builders: Builders, _module: nn.Module, x: Piped) -> Piped:
    return copy.copy(x)


MODULES: dict[type, Callable[..., Piped]] = {
    nn.Conv2d: _conv,
    nn.Linear: _named("linear", "weight", "bias"),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.ReLU: _named("relu"),
    nn.LeakyReLU: _named("leaky_relu", "negative_slope"),
    nn.PReLU: _named("prelu", "weight"),
    nn.ReLU6: _named("relu6"),
    nn.Hardtanh: _named("hardtanh", "min_val", "max_val"),
    nn.Hardsigmoid: _named("hardsigmoid"),
    nn.Hardswish: _named("hardswish"),
    nn.Sigmoid: _named("sigmoid"),
    nn.LogSigmoid: _named("logsigmoid"),
    nn.Tanh: _named("tanh"),
    nn.GELU: _named("gelu", "approximate"),
    nn.SiLU: _named("silu"),
    nn.ELU: _named("elu", "alpha"),
    nn.SELU: _named("selu"),
    nn.Softplus: _named("softplus", "beta", "threshold"),
    nn.Softsign: _named("softsign"),
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _named("adaptive_avg_pool2d", "output_size"),
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool2d: _named("adaptive_max_pool2d", "output_size", "return_indices"),
    nn.ZeroPad2d: _named("pad", "padding"),
    nn.Flatten: _named("flatten", "start_dim", "end_dim"),
    nn.Unflatten: _named("unflatten", "dim", "unflattened_size"),
    nn.Identity: _identity,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
}
"""The modules that have bounds, each with the function that appends its steps."""
