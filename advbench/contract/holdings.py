"""What a defense holds after training, and the promise that no test data are among it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from advbench.contract.compare import differing, logits, require
from advbench.contract.trial import BASE, EPS, Trial, easy_images
from attacks_pool.calling.randomness import keyed_generator
from defenses import Defense

POINTS = 24
SEED = 2
CODE = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, torch.Generator)


def no_test_data(trial: Trial) -> str:
    """Evaluation before each stage does not influence training: no test image is used or stored.

    Tested are the inputs of every module's forward during ``fit``, the tensors that the defense holds
    afterwards, and the weights against those of a twin that was never evaluated.
    """
    for mode in trial.modes:
        x, y = easy_images(BASE, POINTS, seed=SEED)
        pristine, defense = x.clone(), trial.build()
        for stage, attacks in enumerate(trial.stages(mode)[:2]):
            _evaluate(trial, defense, x, y)
            with tripwire(x) as crossed:
                trial.fit(defense, attacks)
            require(
                not crossed,
                f"fit of stage {stage + 1} sends {max(crossed.values(), default=0)} of {POINTS} test images, "
                f"which evaluation had shown it, through a {next(iter(crossed), '')}",
            )
            found = differing(defense.state_dict(), trial.reference(mode).weights[stage])
            require(
                not found, f"evaluated before stage {stage + 1}, it trains differently from a twin: {found}"
            )
        for place, tensor in holdings(defense):
            count = held_images(tensor, x)
            require(not count, f"{place} holds {count} of the {POINTS} test images")
        require(torch.equal(x, pristine), "forward writes into the images that it is given")
    return f"{POINTS} test images, shown by evaluation before each stage, leave no trace"


def _evaluate(trial: Trial, defense: Defense, x: Tensor, y: Tensor) -> None:
    """Evaluate as for a row of R: clean and attacked, through each view."""
    defense.eval()
    for attack in trial.attacks[:2]:
        view = defense.view(attack)
        logits(view, x)
        x_adv = attack.for_training()(view, x, y, generator=keyed_generator("contract", "evaluation"))
        logits(view, x_adv)


@contextmanager
def tripwire(x: Tensor) -> Iterator[dict[str, int]]:
    """Collect the modules whose forward gets images of ``x``, or points within the attacks' budget of one.

    Yields:
        The class name of each such module, and how many of the images it got at once.
    """
    crossed: dict[str, int] = {}

    def look(module: nn.Module, given: tuple[Any, ...]) -> None:
        for value in given:
            if isinstance(value, Tensor) and (count := held_images(value, x)):
                name = type(module).__name__
                crossed[name] = max(count, crossed.get(name, 0))

    handle = register_module_forward_pre_hook(look)
    try:
        yield crossed
    finally:
        handle.remove()


def held_images(tensor: Tensor, x: Tensor) -> int:
    """How many images of ``x`` (N, C, H, W) ``tensor`` contains, each pixel within the attacks' budget.

    Images of one class differ by noise on every pixel, so that no two are that close by accident.
    """
    pixels = x[0].numel()
    if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() % pixels or not tensor.numel():
        return 0
    if tuple(tensor.shape[-3:]) != tuple(x.shape[1:]) and tensor.shape[-1] != pixels:
        return 0
    try:
        rows = tensor.detach().reshape(-1, pixels).to(x.device, x.dtype)
        near = (rows[:, None] - x.flatten(1)[None]).abs().amax(2) <= EPS + 1e-6
        return int(near.any(0).sum())
    except RuntimeError:
        # Values cannot be read inside a function transform; the comparison of weights still applies.
        return 0


def holdings(defense: Defense) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors that ``defense`` holds: weights, other attributes, ``training_state()``.

    The search follows attributes of the defense and its class through modules, containers and objects. It
    does not see closures and module variables.
    """
    seen: dict[int, Any] = {}
    yield from _walk(defense, "self", seen)
    for kind in type(defense).__mro__:
        if kind.__module__.partition(".")[0] not in ("torch", "builtins") and kind is not Defense:
            kept = {name: value for name, value in vars(kind).items() if not inspect.isroutine(value)}
            yield from _walk(kept, kind.__name__, seen)
    yield from _walk(defense.training_state(), "training_state()", seen)


def held_bytes(defense: Defense) -> int:
    """The bytes of everything that the defense holds; shared memory counts once.

    Copies that ``training_state()`` makes of attributes count again, which adds a constant.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for _, tensor in holdings(defense)
        if tensor.layout == torch.strided
    }
    return sum(storages.values())


def _walk(value: Any, place: str, seen: dict[int, Any]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, CODE) or id(value) in seen:
        return
    # Keep a reference, so that no later object reuses the id of a deleted one.
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            yield place, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, nn.Module):
        yield from _walk(dict(vars(value)), place, seen)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _walk(one, f"{place}.{key}", seen)
    elif isinstance(value, str | bytes | int | float):
        return
    elif hasattr(value, "__iter__") and hasattr(value, "__len__"):
        for number, one in enumerate(value):
            yield from _walk(one, f"{place}[{number}]", seen)
    elif hasattr(value, "__dict__"):
        yield from _walk(dict(vars(value)), place, seen)
