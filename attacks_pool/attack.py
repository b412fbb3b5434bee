"""A bound attack: a registered attack function with a fixed budget and fixed knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from attacks_pool.calling.batches import check_batch, kind_of
from attacks_pool.calling.guard import ordinary_mode, out_of_inference, untouched
from attacks_pool.calling.logits import asked_for_logits
from attacks_pool.calling.randomness import (
    PartGenerator,
    ambient_generator,
    draw_seed,
    isolated_randomness,
    keyed_like,
)
from attacks_pool.errors import InputError
from attacks_pool.fast.copy import SearchModel, search_model
from attacks_pool.metadata import AttackInfo, Value, format_value
from attacks_pool.norms import project

WORTH_COPYING = 10_000
"""Passes of one call, over all of its points, from which a faster copy of the model repays its making."""


class AttackFunction(Protocol):
    """An attack's search: ``function(model, x, y, *, generator, early_stop, eps, **knobs) -> x_adv``."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **knobs: object) -> Tensor:
        """Return adversarial images with the shape of ``x``."""
        ...


@dataclass(frozen=True)
class Attack:
    """An attack with a value for every knob, which can be run on any model.

    Call it as ``attack(model, x, y, *, generator=None) -> x_adv``: ``x`` float32 (N, C, H, W) in [0, 1],
    ``y`` int64 (N,); ``model`` maps [0, 1] images to logits (N, K). It searches with the model in eval mode,
    and restores flags, gradients, buffers and the global random state. Without
    a generator, its draws depend on the batch and on the global random state, which stays unchanged.
    ``early_stop=True`` lets it stop at points that already fool the model, as evaluation does. By default an
    ensemble does so too: each member attacks only the points that the members before it have left. Other
    attacks, and ensembles in training, run on every point to the end.

    A white-box attack of many passes searches a faster copy of the model if one agrees with it, as evaluation
    does, and checks its successes on the model itself; ``exact=True`` searches the model itself. Training and
    black-box attacks, whose queries may be counted, always do.
    """

    info: AttackInfo
    function: AttackFunction
    knobs: Mapping[str, Value]
    training_knobs: Mapping[str, Value]
    training: bool = False
    within: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False, compare=False)
    """A context in which every search runs, such as a time limit; a defense's own search uses it too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", MappingProxyType(dict(self.knobs)))
        object.__setattr__(self, "training_knobs", MappingProxyType(dict(self.training_knobs)))

    def __deepcopy__(self, _memo: object) -> Attack:
        # An attack is immutable.
        return self

    @property
    def name(self) -> str:
        """The registered name."""
        return self.info.name

    @property
    def eps(self) -> float:
        """The budget, measured in the attack's norm."""
        return float(self.knobs["eps"])

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """Canonical text with all knobs, sorted and in decimal notation: ``pgd:eps=0.2,restarts=1,…``."""
        return canonical(self.name, self.knobs)

    @property
    def training_text(self) -> str:
        """Canonical text of the cheaper variant that training uses."""
        return canonical(self.name, self.training_knobs)

    def for_training(self) -> Attack:
        """The same attack with its training knobs; a minimal-norm attack then projects onto its eps ball."""
        return replace(self, knobs=self.training_knobs, training=True)

    def scaled(self, factor: float) -> Attack:
        """The same attack with eps and all step lengths multiplied by ``factor`` (for eps warm-up)."""
        declared = self.info.all_knobs()
        knobs = {
            name: float(value) * factor if name in declared and declared[name].scales else value
            for name, value in self.knobs.items()
        }
        return replace(self, knobs=knobs)

    @ordinary_mode()
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        early_stop: bool | None = None,
        exact: bool = False,
    ) -> Tensor:
        """Return adversarial points with the shape of ``x``.

        A model whose weights are not float32 receives the images in the type of its weights. If the model
        returns an object with ``.logits`` or a mapping with ``"logits"``, those are used. Pixels outside
        [0, 1] by at most 1e-6, as rounding leaves them, are clamped.

        Raises:
            InputError: ``model`` is not a module or returns no logits, ``x`` is not float32 (N, C, H, W) in
                [0, 1], ``y`` is not int64 (N,) of the model's classes, or the attack does not support
                images of this shape.
        """
        if not isinstance(model, nn.Module):
            raise InputError(
                f"attack {self.name!r} needs a torch.nn.Module from images to logits, not {kind_of(model)}"
            )
        if early_stop is None:
            early_stop = self.info.family == "ensemble" and not self.training
        x, y = check_batch(x, y)
        check_images(self.info, x)
        if not len(x):
            if isinstance(generator, PartGenerator) and generator.total:
                draw_seed(generator)  # as the processes do that have points of this batch
            return x.clone()
        out_of_inference(model)
        parent = generator or ambient_generator(x)
        draws = keyed_like(parent, draw_seed(parent))
        with (
            self.within(),
            isolated_randomness(draw_seed(draws), x.device),
            untouched(model),
            asked_for_logits(model, x, y) as asked,
        ):
            if not exact and self._worth_copying(model, len(x)):
                with isolated_randomness(0, x.device):
                    asked = search_model(asked, x, reduced=self.info.reduced_precision)
            # The search gets copies, so that in-place writes cannot change the points it is judged against.
            crafted = self.function(
                asked, x.clone(), y.clone(), generator=draws, early_stop=early_stop, **self.knobs
            )
        if not isinstance(crafted, Tensor) or crafted.shape != x.shape:
            raise InputError(f"attack {self.name!r} must return a tensor like x, {tuple(x.shape)}")
        x_adv = crafted.detach().to(x.device, x.dtype)
        if self.training and self.info.kind == "minimal-norm" and self.info.norm is not None:
            x_adv = project(x_adv, x, self.eps, self.info.norm)
        return x_adv

    def _worth_copying(self, model: nn.Module, points: int) -> bool:
        """Whether a call for so many points takes enough passes for a faster copy of the model."""
        if self.training or isinstance(model, SearchModel) or self.info.access != "white-box":
            return False
        cost = self.info.passes(self.knobs)
        return cost is not None and points * cost[0] >= WORTH_COPYING


def canonical(name: str, knobs: Mapping[str, Value]) -> str:
    """Return ``name:knob=value,…`` with the knobs sorted by name."""
    return f"{name}:" + ",".join(f"{knob}={format_value(knobs[knob])}" for knob in sorted(knobs))


def check_images(info: AttackInfo, x: Tensor) -> None:
    """Reject images whose shape the attack's metadata excludes.

    Raises:
        InputError: the attack does not support this number of channels or this image size.
    """
    _check_shape(info, tuple(x.shape[1:]))


def check_task(attacks: Iterable[Attack], shape: tuple[int, ...], classes: int) -> None:
    """Reject attacks that do not support images of this shape or this number of classes, before any runs.

    Args:
        attacks: the attacks of the evaluation or the training.
        shape: the shape of one image, (C, H, W).
        classes: the number of classes.

    Raises:
        InputError: an attack does not support them, or its library rejects its knobs.
    """
    for attack in attacks:
        info = attack.info
        _check_shape(info, shape)
        if classes < info.min_classes:
            raise InputError(f"attack {info.name!r} needs {info.min_classes} classes or more, not {classes}")
        if info.check is not None:
            info.check(attack.knobs, shape, classes)


def _check_shape(info: AttackInfo, shape: tuple[int, ...]) -> None:
    channels, side = shape[0], min(shape[1:])
    if info.channels is not None and channels not in info.channels:
        allowed = " or ".join(map(str, info.channels))
        raise InputError(f"attack {info.name!r} needs images of {allowed} channels, not {channels}")
    if side < info.min_side:
        raise InputError(f"attack {info.name!r} needs images of {info.min_side} pixels a side, not {side}")
