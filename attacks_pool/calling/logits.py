"""Gets logits from any model: converts images to a type it accepts and finds the logits in its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness
from attacks_pool.errors import InputError


class TakeOutput(nn.Module):
    """Wraps a model with several outputs and returns one of them, the logits.

    Args:
        model: maps images (N, C, H, W) to a tuple, a list, a mapping or an object.
        key: the index, key or attribute of the logits (N, K).
    """

    def __init__(self, model: nn.Module, key: int | str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K).

        Raises:
            InputError: the output has no such index, key or attribute.
        """
        output: Any = self.model(x)
        try:
            if isinstance(output, Mapping) or isinstance(self.key, int):
                found = output[self.key]
            else:
                found = getattr(output, self.key)
        except (LookupError, TypeError, AttributeError):
            raise InputError(
                f"{type(self.model).__name__} gives {_kind(output)}, which has no {self.key!r}"
            ) from None
        logits: Tensor = logits_in(found, f"output {self.key!r} of {type(self.model).__name__}")
        return logits


def logits_in(output: Any, whose: str) -> Any:
    """Find the logits in a model's output: the tensor itself, its ``.logits`` or its ``["logits"]``.

    A placeholder of symbolic tracing is returned unchanged.

    Raises:
        InputError: there are no logits in the output; the message begins with ``whose``.
    """
    if isinstance(output, Tensor | torch.fx.Proxy):
        return output
    held = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(held, Tensor):
        return held
    key: int | str | None = None
    if isinstance(output, Mapping):
        key = next((str(name) for name, value in output.items() if isinstance(value, Tensor)), None)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        key = next((place for place, value in enumerate(output) if isinstance(value, Tensor)), None)
    else:
        held = getattr(output, "__dict__", {})
        key = next((str(name) for name, value in held.items() if isinstance(value, Tensor)), None)
    hint = "" if key is None else f": wrap it, such as advbench.TakeOutput(model, {key!r})"
    raise InputError(f"{whose} gives {_kind(output)}, expected a tensor of logits{hint}")


def _kind(output: Any) -> str:
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"{name} of {', '.join(map(repr, output)) or 'nothing'}"
    return name


def image_types(model: nn.Module) -> list[torch.dtype]:
    """Types in which to try float32 images on ``model``: float32 first, then each type of its weights."""
    tensors = chain(model.parameters(), model.buffers())
    kinds = (one.dtype for one in tensors if one.is_floating_point())
    return list(dict.fromkeys([torch.float32, *kinds]))


def image_type(model: nn.Module, x: Tensor) -> torch.dtype:
    """The first of :func:`image_types` that ``model`` accepts for images ``x``.

    A model with weights that are not float32 is tried on one image, in eval mode; this pass is not included
    when passes are counted.
    """
    kinds = image_types(model)
    for kind in kinds[:-1] if len(x) else ():
        try:
            with torch.no_grad(), evaluation_mode(model), isolated_randomness(0, x.device):
                model.forward(x[:1].to(kind))
        except Exception:  # a model may raise any error for a type that it does not accept
            continue
        return kind
    return kinds[-1]


def ask(model: nn.Module, x: Tensor, whose: str) -> Tensor:
    """Compute the logits of ``model`` for images ``x``, converted to the first type that it accepts.

    Raises:
        InputError: the model returns no logits; the message begins with ``whose``.
    """
    kinds = image_types(model)
    for kind in kinds[:-1]:
        try:
            return _at_least_float32(logits_in(model(x.to(kind)), whose))
        except RuntimeError:  # torch raises this for a type that does not fit
            continue
    return _at_least_float32(logits_in(model(x.to(kinds[-1]) if len(kinds) > 1 else x), whose))


def _at_least_float32(logits: Tensor) -> Tensor:
    """Convert 16-bit logits, which autocast produces, because they are too coarse for losses and margins."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextmanager
def asked_for_logits(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[nn.Module]:
    """Make ``model`` accept images like ``x`` (N, C, H, W) in float32 and return a tensor of logits.

    It yields ``model`` itself wherever possible, so that counters of its passes see them. A call raises
    InputError if the model returns no logits, or too few for the labels ``y`` (N,).
    """
    kind, most, whose = image_type(model, x), int(y.max()), f"the model ({type(model).__name__})"

    def convert(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.to(kind) if isinstance(one, Tensor) else one for one in given)

    def answer(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> Any:
        logits = logits_in(output, whose)
        if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] <= most:
            raise InputError(f"y must hold classes below {logits.shape[1]}, as {whose} has, not {most}")
        return logits if kind == torch.float32 else logits.float()

    # TorchScript modules do not accept these hooks.
    asked = nn.Sequential(model).eval() if isinstance(model, torch.jit.ScriptModule) else model
    handles = [asked.register_forward_hook(answer, prepend=True)]
    if kind != torch.float32:
        handles.append(asked.register_forward_pre_hook(convert))
    try:
        yield asked
    finally:
        for handle in handles:
            handle.remove()
