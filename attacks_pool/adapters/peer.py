"""An attack of another library: its metadata, and the function that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.adapters.containment import Contained, mend, trace_kept
from attacks_pool.calling.randomness import draw_seed, isolated_randomness
from attacks_pool.errors import InputError
from attacks_pool.metadata import Access, AttackInfo, Kind, Knob, Norm, Value

OURS: Mapping[str, str] = {
    "max_epsilon": "eps",
    "alpha": "step_size",
    "lr": "step_size",
    "stepsize": "step_size",
    "initial_stepsize": "step_size",
    "n_iter": "steps",
    "nb_iter": "steps",
    "num_iter_set": "steps",
    "max_iterations": "steps",
    "n_queries": "steps",
    "n_restarts": "restarts",
}
"""Maps the libraries' argument names to the knob names used here: eps, steps, step_size and restarts."""
REAL = {"c", "kappa", "lam", "scale", "confidence", "theta", "max_translation", "max_rotation"}
"""Arguments that accept real numbers although their defaults are integers."""
SIGNED = {"theta", "kappa", "min_x_0", "max_x_0"}
"""Arguments that may be negative."""
UNSEEN = {"self", "model", "device", "logger", "seed", "verbose", "n_classes", "norm", "tensorboard"}
"""Arguments that the adapter sets itself, or that do not affect the attack."""
TRAINING_STEPS = 10

Cost = Callable[[Mapping[str, Any], int], tuple[int, int]]
Make = Callable[["PeerCall"], object]
Craft = Callable[["PeerCall"], object]


@dataclass(frozen=True)
class PeerCall:
    """All inputs of one call of a library's attack; arguments have the library's names."""

    model: Contained
    x: Tensor
    y: Tensor
    eps: float
    arguments: dict[str, Any]
    classes: int
    seed: int


@dataclass(frozen=True, eq=False)
class Peer:
    """An attack of another library.

    ``craft`` runs it; ``make`` only builds it, so that the library checks its arguments (``None``: it has
    no arguments). ``arguments`` returns the library's arguments and defaults (read at first use, so that the
    attacks can be listed without the library). ``budget`` is the argument that receives eps (``None``: eps
    only bounds the result at evaluation). ``least_classes`` is the minimum number of classes for its loss,
    ``least_by_loss`` a higher minimum for some values of the knob ``loss``.
    ``asks_classes``: it needs to be given the number of classes.
    """

    name: str
    summary: str
    family: str
    norm: Norm | None
    craft: Craft
    arguments: Callable[[], Mapping[str, Any]]
    kind: Kind = "budgeted"
    access: Access = "white-box"
    paper: str | None = None
    budget: str | None = None
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    channels: tuple[int, ...] | None = None
    min_side: int = 1
    least_steps: int = 1
    make: Make | None = None
    least_classes: int = 2
    least_by_loss: Mapping[str, int] = field(default_factory=dict)
    asks_classes: bool = False
    cost: Cost | None = None

    @cached_property
    def info(self) -> AttackInfo:
        """Metadata with the knobs of the installed version of the library."""
        return AttackInfo(
            name=self.name,
            family=self.family,
            norm=self.norm,
            access=self.access,
            kind=self.kind,
            paper=self.paper,
            knobs=self._knobs,
            channels=self.channels,
            min_side=self.min_side,
            min_classes=self.least_classes,
            check=self.check,
            cost=self.cost,
        )

    @cached_property
    def _given(self) -> dict[str, Any]:
        """Arguments that can be knobs, namely numbers and words."""
        return {
            argument: default
            for argument, default in self.arguments().items()
            if argument not in UNSEEN
            and argument != self.budget
            and isinstance(default, bool | int | float | str)
        }

    @cached_property
    def _knobs(self) -> dict[str, Knob]:
        usual = self.arguments().get(self.budget) if self.budget else None
        knobs = {
            OURS.get(argument, argument): self._knob(argument, default, usual)
            for argument, default in self._given.items()
        }
        if self.norm is None:
            knobs["eps"] = Knob(
                float(usual or 0.0), f"{self.budget} of the library", open_low=True, scales=True
            )
        return knobs

    def _knob(self, argument: str, default: Value, usual: float | None) -> Knob:
        own, words = OURS.get(argument, argument), argument.replace("_", " ")
        if own == "steps":
            cheap = min(int(default), TRAINING_STEPS)
            return Knob(default, f"{words} of the library", training=cheap, low=self.least_steps)
        if own == "restarts":
            return Knob(default, f"{words} of the library", training=1, low=1)
        if own == "step_size" and usual:
            ratio = float(default) / float(usual)
            text = f"step length; default: {ratio:g} * eps, as in the library"
            return Knob(lambda knobs: ratio * float(knobs["eps"]), text, open_low=True, scales=True)
        if own == "step_size":
            return Knob(float(default), f"{words} of the library", open_low=True)
        real = float(default) if argument in REAL else default
        low = -math.inf if argument in SIGNED else 0.0
        return Knob(real, f"{words} of the library", low=low, choices=self.choices.get(argument, ()))

    def check(self, knobs: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> None:
        """Let the library build the attack for images (C, H, W) and ``classes`` classes, with a dummy model.

        Raises:
            InputError: the library rejects an argument, or a dependency is missing.
        """
        if self.make is not None:
            x = torch.zeros(1, *shape)
            blank = Contained(nn.Sequential(nn.Flatten(), nn.Linear(x.numel(), classes)), x)
            y = torch.zeros(1, dtype=torch.int64)
            with isolated_randomness(0, x.device), trace_kept():
                self.make(self._job(blank, x, y, classes, 0, knobs))

    def _job(
        self, model: Contained, x: Tensor, y: Tensor, classes: int, seed: int, given: Mapping[str, Any]
    ) -> PeerCall:
        eps = float(given["eps"])
        arguments: dict[str, Any] = {
            argument: given[OURS.get(argument, argument)] for argument in self._given
        }
        if self.budget is not None:
            arguments[self.budget] = eps
        return PeerCall(model, x, y, eps, arguments, classes, seed)

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        **given: Any,
    ) -> Tensor:
        """Return x_adv like ``x`` (N, C, H, W); it ignores ``early_stop`` and attacks every point.

        Raises:
            InputError: the model has too few classes, or the library rejects an argument.
        """
        eps, contained = float(given["eps"]), Contained(model, x)
        loss = str(given.get("loss"))
        least = max(self.least_classes, self.least_by_loss.get(loss, 0))
        needs = self.asks_classes or least > 2
        classes = contained.classes(x) if needs else 0
        if needs and classes < least:
            which = f" with loss={loss}" if least > self.least_classes else ""
            raise InputError(
                f"attack {self.name!r}{which} needs a model of {least} classes or more, not {classes}"
            )
        seed = draw_seed(given["generator"]) % 2**31
        with trace_kept():
            found = self.craft(self._job(contained, x, y, classes, seed, given))
        return mend(found, x, eps, self.norm, self.kind)


def refused(name: str, error: Exception) -> InputError:
    """Build the error for arguments that the library itself rejects."""
    return InputError(
        f"attack {name!r} rejects its knobs: {type(error).__name__}: {error}".partition("\n")[0]
    )
