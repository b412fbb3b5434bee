"""Comparisons for the contract: weights bit for bit, answers, the process's state, refused calls."""

from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from attacks_pool.errors import InputError
from defenses import Defense


class BrokenPromiseError(Exception):
    """A promise does not hold; the message says why."""


def require(holds: object, why: str) -> None:
    """Raise BrokenPromiseError with ``why`` unless the promise ``holds``."""
    if not holds:
        raise BrokenPromiseError(why)


def global_state() -> dict[str, Any]:
    """The state of the process that a defense must not change."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": (numpy_state[1].tobytes(), numpy_state[2]),
        "Python's random state": random.getstate(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's default type": torch.get_default_dtype(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's number of threads": torch.get_num_threads(),
    }


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state dict."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    """Which tensors of two state dicts differ in any bit, in words; empty if none does."""
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))
        return f"{len(odd)} tensors are in only one of them ({odd[0]}, …)"
    # NaN never compares equal, but training that gives NaN fails before the comparison.
    wrong = [name for name, value in first.items() if not torch.equal(value, second[name])]
    return f"{len(wrong)} of {len(first)} tensors differ ({wrong[0]}, …)" if wrong else ""


def logits(module: nn.Module, x: Tensor) -> Tensor:
    """The logits in eval mode; equal calls use equal draws of a stochastic defense."""
    module.eval()
    if isinstance(module, Defense):
        module.generator = keyed_generator("contract", "answer")
    with torch.no_grad(), isolated_randomness(key_seed("contract", "answer"), x.device):
        answer: Tensor = module(x)
    return answer


def refuses(what: str, call: Callable[..., Any], *arguments: Any, **more: Any) -> bool:
    """Whether ``call`` raises an InputError; ``what`` describes the call in errors.

    Raises:
        BrokenPromiseError: it raises another error, or one with several lines.
    """
    try:
        call(*arguments, **more)
    except InputError as error:
        one_line = str(error) and "\n" not in str(error)
        require(one_line, f"{what} is refused with an error that is not one line: {error!r}")
        return True
    except Exception as error:
        raise BrokenPromiseError(
            f"{what} ends in {type(error).__name__} ({first_line(error)}): expected an InputError"
        ) from error
    return False


def described(error: BaseException, kind: Callable[..., Any]) -> str:
    """The error in one line, and where in the file of the class or function ``kind`` it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(kind)]
    place = (own or frames)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({place.filename}:{place.lineno}, in {place.name})"


def first_line(error: BaseException) -> str:
    """The first line of the error's message."""
    return next(iter(str(error).strip().splitlines()), "no message")
