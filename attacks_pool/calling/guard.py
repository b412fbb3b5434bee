"""Restores the model after an attack: its flags, gradients and buffers; also counts its passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Passes:
    """Number of samples that went through the model, forward and backward."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """Count the samples of every call of ``model`` inside, and those of every backward pass."""
    passes = Passes()

    def count(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        samples = output.shape[0]
        passes.forwards += samples
        if output.requires_grad:
            output.register_hook(lambda _gradient: _add_backward(passes, samples))  # type: ignore[no-untyped-call]

    handle = model.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def _add_backward(passes: Passes, samples: int) -> None:
    passes.backwards += samples


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Enable gradients, leave inference mode and default to float32 inside; also usable as a decorator."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(default)


def out_of_inference(model: nn.Module) -> None:
    """Replace parameters and buffers created in inference mode by equal ones that allow gradients."""
    made: dict[int, torch.Tensor] = {}

    def ordinary(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.detach().clone()
        return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy

    with torch.inference_mode(False):
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its tensors cannot be replaced
            tables: tuple[Any, Any] = (module._parameters, module._buffers)
            for held in tables:
                for name, tensor in list(held.items()):
                    if tensor is not None and tensor.is_inference():
                        held[name] = made.setdefault(id(tensor), ordinary(tensor))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside; restore each module's own flag afterwards.

    ``model.train()`` would be wrong, because it would unfreeze batch norms that the owner froze.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients enabled inside; restore flags, ``requires_grad`` and ``.grad`` afterwards.

    A search that calls ``backward`` writes into new gradients and does not change the owner's.
    """
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _, _ in gradients:
        parameter.grad = None
    try:
        with evaluation_mode(model), ordinary_mode():
            yield
    finally:
        for parameter, gradient, trained in gradients:
            parameter.requires_grad_(trained)
            parameter.grad = gradient


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore batch-norm statistics and other buffers if a search changed them."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Inside, ``nn.MultiheadAttention`` is made of operations whose multiply-adds can be counted.

    In eval mode without gradients it otherwise calls one kernel, which counts as nothing.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
