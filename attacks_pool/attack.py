"""A bound attack: a registered function with its budget and knobs fixed."""

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
from attacks_pool.calling.randomness import ambient_generator, draw_seed, isolated_randomness, keyed_generator
from attacks_pool.errors import InputError
from attacks_pool.metadata import AttackInfo, Value, format_value
from attacks_pool.norms import project


class AttackFunction(Protocol):
    """The search itself: ``function(model, x, y, *, generator, early_stop, eps, **knobs) -> x_adv``."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **knobs: object) -> Tensor:
        """Craft x_adv like ``x``."""
        ...


@dataclass(frozen=True)
class Attack:
    """An attack with every knob resolved, ready to be pointed at any model.

    Call it ``attack(model, x, y, *, generator=None) -> x_adv``: ``x`` float32 (N, C, H, W) in [0, 1], ``y``
    int64 (N,), ``model`` maps [0, 1] images to logits (N, K). It crafts on every point given, for all its
    steps, in eval mode, and leaves flags, gradients, buffers and the global random state as they were.
    Without a generator the draws depend on the global random state (which does not move) and the batch.
    ``early_stop=True`` may freeze points that already fool the model; only evaluation sets it.
    """

    info: AttackInfo
    function: AttackFunction
    knobs: Mapping[str, Value]
    training_knobs: Mapping[str, Value]
    training: bool = False
    within: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False, compare=False)
    """What every search runs inside, such as a limit of time; a defense's own search does too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", MappingProxyType(dict(self.knobs)))
        object.__setattr__(self, "training_knobs", MappingProxyType(dict(self.training_knobs)))

    def __deepcopy__(self, _memo: object) -> Attack:
        # Nothing in it changes.
        return self

    @property
    def name(self) -> str:
        """The registered name."""
        return self.info.name

    @property
    def eps(self) -> float:
        """The budget, in the attack's norm."""
        return float(self.knobs["eps"])

    @property
    def text(self) -> str:
        """Canonical text with every resolved knob, sorted, decimal: ``pgd:eps=0.2,restarts=1,…``."""
        return canonical(self.name, self.knobs)

    @property
    def training_text(self) -> str:
        """Canonical text of the cheaper form that training uses."""
        return canonical(self.name, self.training_knobs)

    def for_training(self) -> Attack:
        """The same attack with its training knobs; a minimal-norm one then projects onto its ball."""
        return replace(self, knobs=self.training_knobs, training=True)

    def scaled(self, factor: float) -> Attack:
        """The same search in a ball ``factor`` times as large, with steps as much shorter (eps warm-up)."""
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
        early_stop: bool = False,
    ) -> Tensor:
        """Craft adversarial points like ``x``.

        A model of another type than float32 gets the images in its own; one that gives an object with
        ``.logits``, or a mapping with ``"logits"``, is asked for these. Pixels that leave [0, 1] by rounding,
        at most 1e-6, are brought back.

        Raises:
            InputError: ``model`` is no module or gives no logits, ``x`` is not float32 (N, C, H, W) in
                [0, 1], ``y`` is not int64 (N,) of the model's classes, or the attack cannot treat such
                images.
        """
        if not isinstance(model, nn.Module):
            raise InputError(
                f"attack {self.name!r} needs a torch.nn.Module from images to logits, not {kind_of(model)}"
            )
        x, y = check_batch(x, y)
        check_images(self.info, x)
        if not len(x):
            return x.clone()
        out_of_inference(model)
        draws = keyed_generator(draw_seed(generator or ambient_generator(x)))
        with (
            self.within(),
            isolated_randomness(draw_seed(draws), x.device),
            untouched(model),
            asked_for_logits(model, x, y) as asked,
        ):
            # Copies: a search that writes into what it was given must not move what it is judged by.
            crafted = self.function(
                asked, x.clone(), y.clone(), generator=draws, early_stop=early_stop, **self.knobs
            )
        if not isinstance(crafted, Tensor) or crafted.shape != x.shape:
            raise InputError(f"attack {self.name!r} must return a tensor like x, {tuple(x.shape)}")
        x_adv = crafted.detach().to(x.device, x.dtype)
        if self.training and self.info.kind == "minimal-norm" and self.info.norm is not None:
            x_adv = project(x_adv, x, self.eps, self.info.norm)
        return x_adv


def canonical(name: str, knobs: Mapping[str, Value]) -> str:
    """``name:knob=value,…`` with the knobs sorted."""
    return f"{name}:" + ",".join(f"{knob}={format_value(knobs[knob])}" for knob in sorted(knobs))


def check_images(info: AttackInfo, x: Tensor) -> None:
    """Refuse images that the attack's metadata rules out.

    Raises:
        InputError: a number of channels or a side that it cannot treat.
    """
    _check_shape(info, tuple(x.shape[1:]))


def check_task(attacks: Iterable[Attack], shape: tuple[int, ...], classes: int) -> None:
    """Refuse attacks that cannot be made on such images and classes, before any of them is made.

    Args:
        attacks: what is to be measured or trained against.
        shape: of an image, (C, H, W).
        classes: how many the models tell apart.

    Raises:
        InputError: the first attack that cannot treat them, or whose library refuses its knobs.
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
