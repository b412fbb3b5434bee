"""Training passes compiled by ``torch.compile``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.guard import buffers_kept
from attacks_pool.calling.logits import ask
from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.errors import InputError

BACKEND = "inductor"
MOST_SHAPES = 64
"""Compiled versions of one network, one for each size of batch and kind of pass."""


def check_compiler(device: torch.device) -> None:
    """Check that there is a compiler for the processor.

    Raises:
        InputError: there is none.
    """
    if device.type != "cpu" or BACKEND != "inductor":
        return
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:
        raise InputError(
            "compile=on needs a C++ compiler and finds none: install g++, name one in the variable CXX, or "
            "set compile=off"
        ) from error


def compiled(model: nn.Module, x: Tensor) -> nn.Module:
    """A module that shares the parameters and buffers of ``model`` and compiles its passes when called.

    Those on images ``x`` (N, C, H, W) are compiled here. Each size of batch is compiled for itself, so that a
    resumed stage computes what an unbroken one does.

    Raises:
        InputError: the passes cannot be compiled.
    """
    check_compiler(x.device)
    # Older versions of torch count the compiled versions of all networks together.
    known = inspect.signature(torch.compile).parameters
    wanted = {"isolate_recompiles": True, "recompile_limit": MOST_SHAPES}
    more: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    fast = torch.compile(model, backend=BACKEND, dynamic=False, **more)
    assert isinstance(fast, nn.Module)
    try:
        with buffers_kept(model), isolated_randomness(0, x.device):
            logits = ask(fast, x, "the classifier")
            moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if moved and logits.requires_grad:
                torch.autograd.grad(logits.sum(), moved, allow_unused=True)
    except InputError:
        raise
    except Exception as error:
        # torch wraps what a compiler raises in an error of many lines.
        inner = getattr(error, "inner_exception", error)
        lines = str(inner).strip().splitlines()
        cause = lines[0] if lines else type(inner).__name__
        raise InputError(f"compile=on does not work with this network: {cause}; set compile=off") from error
    return fast
