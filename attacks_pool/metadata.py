"""Static metadata of attacks: threat model, knobs with their defaults and ranges, and the paper."""

from __future__ import annotations

import math
import operator
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from attacks_pool.errors import InputError, unknown

BUDGETS: Mapping[str, Mapping[str, float]] = {
    "digits": {"linf": 0.2, "l2": 1.0, "l1": 4.0, "l0": 4.0},
    "mnist": {"linf": 0.3, "l2": 2.0, "l1": 10.0, "l0": 16.0},
    "fashion-mnist": {"linf": 0.3, "l2": 2.0, "l1": 10.0, "l0": 16.0},
    "cifar10": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0},
    "cifar100": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0},
    "imagenet": {"linf": 4 / 255, "l2": 3.0, "l1": 40.0, "l0": 600.0},
}
"""eps by data set and norm, in units of [0, 1] pixels (l0: pixels); ``imagenet``: 224 x 224 colour images."""


def default_eps(attack: str, norm: str | None, budget: str | None) -> float:
    """The default eps for ``norm`` from the :data:`BUDGETS` table.

    Raises:
        InputError: no budget was named, or the table has no budget of this name.
    """
    if budget is None:
        raise InputError(
            f"attack {attack!r} needs a budget: give eps=… or budget=NAME ({', '.join(BUDGETS)})"
        )
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    return BUDGETS[budget][str(norm)]


IN_BUDGETS = re.compile(r"(?:([0-9.]+)\s*\*\s*)?eps(?:\s*/\s*([0-9.]+))?")
"""A length in multiples of the budget: ``eps/4``, ``2.5*eps/50``."""
Norm = Literal["linf", "l2", "l1", "l0"]
Access = Literal["white-box", "black-box", "transfer"]
Kind = Literal["budgeted", "minimal-norm"]
Value = bool | int | float | str
"""Types that a knob's value may have."""

FAMILIES: Mapping[str, str] = {
    "single-step": "one signed or normalised gradient step",
    "projected-gradient": "iterated gradient steps, projected onto the ball",
    "momentum": "iterated gradient steps that accumulate a velocity, designed to transfer between models",
    "minimal-norm": "search for the smallest perturbation that changes the prediction",
    "query": "random or estimated search that uses only logits or labels",
    "noise": "perturbations drawn independently of the model",
    "spatial": "rotations, translations and elastic deformations",
    "colour": "changes of hue, saturation, brightness and contrast",
    "corruption": "common image corruptions",
    "ensemble": "several attacks combined: a point is robust only if all of them fail on it",
}
"""The published attack families; every attack belongs to one of them."""


@dataclass(frozen=True)
class Knob:
    """One parameter of an attack.

    ``default`` is the value for evaluation and ``training`` a cheaper one for training (``None``: the same).
    A callable computes the value from the knobs resolved before it (``eps`` always is). ``scales`` marks
    lengths in image units, which shrink with ``eps`` during a warm-up.
    """

    default: Value | Callable[[Mapping[str, Any]], Value]
    help: str
    training: Value | Callable[[Mapping[str, Any]], Value] | None = None
    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    choices: tuple[str, ...] = ()
    scales: bool = False
    dtype: type[Value] | None = None

    @property
    def value_type(self) -> type[Value]:
        """bool, int, float or str."""
        return self.dtype or (float if callable(self.default) else type(self.default))

    def parse(self, label: str, given: Value) -> Value:
        """Convert ``given``, text or number, to this knob's type; ``label`` names the knob in errors.

        Raises:
            InputError: wrong type, out of range, or not among the choices.
        """
        kind = self.value_type
        if kind is str:
            if self.choices and str(given) not in self.choices:
                raise unknown(label, str(given), self.choices)
            return str(given)
        if kind is bool:
            return _parse_bool(label, given)
        number = parse_number(label, given)
        if kind is int and number != int(number):
            raise InputError(f"{label}={given} must be a whole number")
        if number < self.low or number > self.high or (self.open_low and number == self.low):
            raise InputError(f"{label}={given} is out of range: it must be {self.allowed()}")
        return int(number) if kind is int else number

    def allowed(self) -> str:
        """The allowed range or choices, in words."""
        if self.choices:
            return " or ".join(self.choices)
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and at most {self.high:g}"


def parse_number(label: str, given: Value) -> float:
    """Read a finite number from a number or from text such as ``0.1``, ``1e-3`` or ``8/255``."""
    try:
        if isinstance(given, bool):
            raise ValueError
        if isinstance(given, str) and "/" in given:
            top, bottom = given.split("/")
            number = float(top) / float(bottom)
        else:
            number = float(given)
    except ZeroDivisionError:
        raise InputError(f"{label}={given} divides by zero") from None
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{label}={given!s} is not a number: write 0.1 or 8/255") from None
    if not math.isfinite(number):
        raise InputError(f"{label}={given} is not finite")
    return number


def in_budgets(label: str, given: Value, eps: float) -> Value:
    """The length of a text such as ``eps/4`` or ``0.1*eps``; any other value as it is.

    Raises:
        InputError: the text divides by zero.
    """
    found = IN_BUDGETS.fullmatch(given.strip()) if isinstance(given, str) else None
    if found is None:
        return given
    times, by = (1.0 if text is None else parse_number(label, text) for text in found.groups())
    if by == 0:
        raise InputError(f"{label}={given} divides by zero")
    return times * eps / by


def whole_number(label: str, given: object) -> int:
    """Convert an integer, a NumPy integer included, to a plain ``int``.

    Raises:
        InputError: ``given`` is not an integer; bools and texts are rejected too.
    """
    try:
        if isinstance(given, bool):
            raise TypeError
        return operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{label}={reprlib.repr(given)} must be a whole number") from None


def _parse_bool(label: str, given: Value) -> bool:
    text = str(given).lower()
    if text not in ("true", "false", "1", "0", "yes", "no"):
        raise InputError(f"{label}={given} must be true or false")
    return text in ("true", "1", "yes")


def format_value(value: Value) -> str:
    """Canonical text of a knob's value: the shortest decimal text that reads back as the same value.

    >>> format_value(1e-05), format_value(0.2), format_value(7)
    ('0.00001', '0.2', '7')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return str(value)


class AttackInfo(BaseModel):
    """Frozen metadata of an attack.

    ``norm`` is ``None`` for attacks that no norm bounds. ``kind`` says whether the search stays inside
    ``eps`` (``budgeted``) or looks for the smallest perturbation (``minimal-norm``). ``paper`` is an arXiv
    id, or ``None``.

    ``channels``, ``min_side`` and ``min_classes`` say which images and models the attack supports (``None``:
    any number of channels). ``check(knobs, shape, classes)`` raises InputError for any other images (C, H, W)
    or number of classes that the attack would reject; it needs no model.
    ``reduced_precision`` lets evaluation run the search, but never the verdict, in bfloat16.
    ``cost(knobs, classes)`` is the maximum number of forward and of backward passes for one point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str = Field(pattern=r"^([a-z0-9][a-z0-9-]*|[a-z]{2}:[A-Za-z0-9][A-Za-z0-9-]*)$")
    family: str
    norm: Norm | None
    access: Access
    kind: Kind = "budgeted"
    paper: str | None
    knobs: dict[str, Knob] = Field(default_factory=dict)
    channels: tuple[int, ...] | None = None
    min_side: int = Field(default=1, ge=1)
    min_classes: int = Field(default=2, ge=2)
    reduced_precision: bool = False
    cost: Callable[[Mapping[str, Any], int], tuple[int, int]] | None = None
    check: Callable[[Mapping[str, Any], tuple[int, ...], int], None] | None = None

    @field_validator("family")
    @classmethod
    def _known_family(cls, family: str) -> str:
        if family not in FAMILIES:
            raise unknown("family", family, FAMILIES)
        return family

    def passes(self, knobs: Mapping[str, Any], classes: int = 10) -> tuple[int, int] | None:
        """The maximum numbers of forward and backward passes for one point; ``None`` if not declared."""
        return None if self.cost is None else self.cost(knobs, classes)

    def all_knobs(self) -> dict[str, Knob]:
        """All knobs, ``eps`` first; an attack without a norm declares its own ``eps``."""
        if "eps" in self.knobs:
            return dict(self.knobs)
        high = 1.0 if self.norm == "linf" else math.inf
        eps = Knob(0.0, f"budget in the {self.norm} norm", high=high, open_low=True, scales=True)
        return {"eps": eps, **self.knobs}


def step_size(multiple: float) -> Knob:
    """A knob for the step length, by default ``multiple · eps / steps``, in image units."""
    return Knob(
        lambda knobs: multiple * float(knobs["eps"]) / int(knobs["steps"]),
        f"step length; default: {multiple:g} * eps / steps",
        open_low=True,
        scales=True,
    )


def steps(default: int, training: int | None = None) -> Knob:
    """A knob for the number of gradient steps (or of queries)."""
    return Knob(default, "number of search steps", training=training, low=1)


def restarts(default: int = 1) -> Knob:
    """A knob for the number of independent starts; the most successful start counts for each point."""
    return Knob(default, "number of independent starts", training=1, low=1)


def gradient_steps(knobs: Mapping[str, Any], classes: int) -> tuple[int, int]:  # noqa: ARG001 - any number
    """Cost of a gradient search: both passes per step; with restarts, a forward pass to judge each."""
    runs = int(knobs.get("steps", 1)) * int(knobs.get("restarts", 1))
    looks = int(knobs["restarts"]) if int(knobs.get("restarts", 1)) > 1 else 0
    return runs + looks, runs
