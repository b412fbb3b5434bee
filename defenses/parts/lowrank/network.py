"""Inserts adapters into a network, and merges them into a plain network again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks_pool.errors import InputError
from defenses.parts.lowrank.batchnorm import TaskBatchNorm
from defenses.parts.lowrank.convolution import AdaptedConv2d, Mix
from defenses.parts.lowrank.routing import Routing

Norms = Literal["task", "batch"]
Adapted = AdaptedConv2d | TaskBatchNorm


def inject(model: nn.Module, *, rank: int, scale: float, norms: Norms = "task") -> tuple[nn.Module, Routing]:
    """Add adapters to each ``nn.Conv2d`` with groups=1; with ``norms="task"``, replace batch norm too.

    Parameters and their names stay the same. Layers of derived classes, and grouped or transposed
    convolutions, are not changed. ``model`` is modified in place.

    Returns:
        The network (``model`` itself, unless it is a single layer) and the routing of its batches.

    Raises:
        InputError: there is no such convolution, or the network already has adapters.
    """
    if any(isinstance(module, AdaptedConv2d) for module in model.modules()):
        raise InputError("this network already has low-rank adapters: give one without")
    if not any(_is_conv(module) for module in model.modules()):
        raise InputError(
            f"low-rank adapters need a network with a convolution: {type(model).__name__} has no nn.Conv2d "
            "with groups=1"
        )
    routing = Routing()

    def change(module: nn.Module) -> nn.Module:
        if _is_conv(module):
            assert isinstance(module, nn.Conv2d)
            return AdaptedConv2d(module, routing, rank=rank, scale=scale)
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
        if isinstance(module, AdaptedConv2d):
            module.add_task(generator)
        else:
            module.add_task(source)


def _is_conv(module: nn.Module) -> bool:
    """Whether the module is exactly an ``nn.Conv2d`` with groups=1 whose weight is a parameter."""
    return type(module) is nn.Conv2d and module.groups == 1 and "weight" in module._parameters


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
