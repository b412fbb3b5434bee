"""Inserts adapters into a network, and merges them into a plain network again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks_pool.errors import InputError
from defenses.parts.lowrank.batchnorm import TaskBatchNorm
from defenses.parts.lowrank.convolution import AdaptedConv2d
from defenses.parts.lowrank.layer import AdaptedLayer, Mix
from defenses.parts.lowrank.linear import AdaptedAttention, AdaptedLinear
from defenses.parts.lowrank.routing import Routing

Norms = Literal["task", "batch"]
Adapt = Literal["conv", "all"]
Adapted = AdaptedLayer | TaskBatchNorm
KINDS: Mapping[type[nn.Module], Callable[..., AdaptedLayer]] = {
    nn.Conv2d: AdaptedConv2d,
    nn.Linear: AdaptedLinear,
    nn.MultiheadAttention: AdaptedAttention,
}
"""The layers that can be adapted; derived classes may compute something else."""


def inject(
    model: nn.Module, *, rank: int, scale: float, norms: Norms = "task", adapt: Adapt | None = None
) -> tuple[nn.Module, Routing]:
    """Add adapters to the layers of a network; with ``norms="task"``, replace batch norm too.

    Parameters and their names stay the same. Layers of derived classes, transposed convolutions, attention
    with different widths of queries and keys, and weights that are no layer's are not changed. ``model`` is
    modified in place.

    Args:
        model: the network.
        rank: r.
        scale: s.
        norms: ``task`` or ``batch``.
        adapt: ``conv``: each ``nn.Conv2d`` with groups=1. ``all``: each ``nn.Conv2d``, ``nn.Linear`` and
            ``nn.MultiheadAttention``. By default ``conv`` if at least half of these layers are convolutions
            with groups=1, as in ResNets, and ``all`` otherwise, as in ViT and ConvNeXt.

    Returns:
        The network (``model`` itself, unless it is a single layer) and the routing of its batches.

    Raises:
        InputError: there is no such layer, or the network already has adapters.
    """
    if any(isinstance(module, AdaptedLayer) for module in model.modules()):
        raise InputError("this network already has low-rank adapters: give one without")
    layers = _layers(model)
    chosen = [layer for layer in layers if _is_conv(layer)]
    if adapt == "all" or (adapt is None and 2 * len(chosen) < len(layers)):
        chosen = layers
    if not chosen:
        wanted = "an nn.Conv2d with groups=1" if adapt == "conv" else "a convolution or a linear layer"
        raise InputError(f"low-rank adapters need a network with {wanted}: {type(model).__name__} has none")
    routing, ids = Routing(), {id(layer) for layer in chosen}

    def change(module: nn.Module) -> nn.Module:
        if id(module) in ids:
            for kind, made in KINDS.items():
                if type(module) is kind:
                    return made(module, routing, rank=rank, scale=scale)
        if norms == "task" and type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            assert isinstance(module, _BatchNorm)
            return TaskBatchNorm(module, routing)
        return module

    return _replaced(model, change), routing


def merged(model: nn.Module, mix: Mix) -> nn.Module:
    """A plain network of the original architecture, for a task, fixed weights (E,), or the backbone.

    Its state dict has the same names and shapes as the network before adapters were added.
    """

    def change(module: nn.Module) -> nn.Module:
        return module.plain(mix) if isinstance(module, Adapted) else module

    return _replaced(copy.deepcopy(model), change)


def adapted(model: nn.Module) -> Iterator[Adapted]:
    """The modules with separate parameters or statistics per task."""
    return (module for module in model.modules() if isinstance(module, Adapted))


def add_task(model: nn.Module, generator: torch.Generator, source: int | None = None) -> None:
    """Add an adapter for one more task; its running statistics start as those of the task ``source``."""
    for module in adapted(model):
        if isinstance(module, AdaptedLayer):
            module.add_task(generator)
        else:
            module.add_task(source)


def image_channels(model: nn.Module) -> int:
    """The number of image channels, by the network's first convolution.

    Raises:
        InputError: it has no convolution.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise InputError(
            f"the router needs the number of image channels: {type(model).__name__} has no convolution that "
            "tells it, so set channels=1 for grey images, or channels=3"
        )
    return first.in_channels


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers that can be adapted. Attention counts as one, with its output projection."""
    return [
        module
        for module in model.modules()
        if type(module) in KINDS
        and ("in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight")
        in module._parameters
        and getattr(module, "_qkv_same_embed_dim", True)
    ]


def _is_conv(module: nn.Module) -> bool:
    """Whether the module is a convolution with groups=1."""
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _replaced(model: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace each module of ``model`` by ``change`` of it; a module that is used twice stays shared."""
    done: dict[int, tuple[nn.Module, nn.Module]] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) not in done:
            # Keep the old module alive, so that its id is not reused.
            done[id(module)] = (module, change(module))
            if done[id(module)][1] is module:
                for name, child in list(module._modules.items()):
                    if child is not None:
                        module._modules[name] = visit(child)
        return done[id(module)][1]

    return visit(model)
