"""The promise that training never sees test data, as far as it can be tested from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from advbench.contract.compare import differing, logits, require
from advbench.contract.holdings import holdings
from advbench.contract.trial import BASE, EPS, Trial, easy_images
from attacks_pool.calling.randomness import keyed_generator
from defenses import Defense

POINTS = 24
SEED = 2


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
