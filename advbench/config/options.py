"""The options that users write, and the frozen, resolved configuration of a run."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from os import PathLike, fspath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer

from advbench.data import DataChoices
from advbench.models.arguments import plain_arguments
from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import parse_number
from attacks_pool.sequences import parse_attacks
from defenses.training.plan import MOST_EPOCHS, PretrainPlan, TrainPlan
from leaderboards.statistics.naming import attack_name, model_name

MOST_THREADS = 1024
"""The most threads; torch crashes with millions."""

LATER_KEYS = ("plugins", "weights", "model_args", "image_size", "channels", "classes", "train_points")
"""Keys that configurations had no place for in the beginning."""
ATTACK_LISTS = ("sequence", "unseen", "eval")
"""Options that list the attacks to measure."""
MERGED = ("set", "train_set", "model_args")
"""Options that are merged, while others are replaced."""

DEFAULT_UNSEEN = ("apgd", "pgd-l2", "square")
"""Attacks not used in training unless the sequence names them: an adaptive one, another norm, a black box."""

EVALUATION_VERSION = 1
"""The evaluator's version, increased if the meaning of its numbers changes; part of every protocol."""


class DataOptions(BaseModel):
    """What a run uses of its data set; None for what the files have. See `advbench.data.DataChoices`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int | None = None
    channels: int | None = None
    classes: int | list[str] | None = None
    train_points: int | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        """Parse ``10`` and ``cat,dog`` from the command line."""
        if not isinstance(given, str):
            return given
        return int(given) if given.strip().isdecimal() else [name.strip() for name in given.split(",")]

    @classmethod
    def among(cls, given: Mapping[str, Any]) -> DataOptions:
        """These options among others.

        Raises:
            InputError: a value has the wrong type.
        """
        try:
            return DataOptions(**{key: given.get(key) for key in DataOptions.model_fields})
        except ValidationError as error:
            raise InputError(explain(error)) from None

    def choices(self, memory: float | None = None) -> DataChoices:
        """The choices, and the bytes of images to keep in memory.

        Raises:
            InputError: a value is out of range.
        """
        classes = tuple(self.classes) if isinstance(self.classes, list) else self.classes
        return DataChoices(self.image_size, self.channels, classes, self.train_points, memory)


class Weights(BaseModel):
    """The weights that a run starts from, as its record describes them.

    Attributes:
        name: the name of their file.
        sha256: its SHA-256.
        state_sha256: the digest of the classifier's state with these weights.
        file: where the file is on this machine, which records do not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    state_sha256: str
    file: str | None = Field(default=None, exclude=True)


class Options(DataOptions):
    """The options of a run, from a command line, a file or a call. Everything has a default.

    The keys of a resolved :class:`RunConfig` are accepted too, so a record can repeat its own run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: str = "air"
    sequence: str | list[str] = "fgsm,pgd,cw"
    regime: str | None = None
    dataset: str = "digits"
    data_dir: str | None = None
    model: str | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    weights: str | Weights | None = None
    epochs: int | None = Field(default=None, ge=1, le=MOST_EPOCHS)
    unseen: str | list[str] = "auto"
    eval: str | list[str] = "none"
    points: int | str | dict[str, int] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    select: Literal["last", "val-robust"] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    train_set: dict[str, Any] = Field(default_factory=dict)
    params: dict[str, Any] = Field(default_factory=dict)
    plan: dict[str, Any] = Field(default_factory=dict)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    training: list[str] | None = None
    target_aware: bool | None = None
    plugins: list[str] = Field(default_factory=list)

    @field_validator("weights", mode="before")
    @classmethod
    def _path(cls, given: object) -> object:
        """Convert a path to text."""
        return fspath(given) if isinstance(given, PathLike) else given

    @field_validator("epochs", "points", "seed", "threads", mode="before")
    @classmethod
    def _whole(cls, given: object) -> object:
        """Convert NumPy's integers to plain ones, also in a mapping; True is not a number."""
        if isinstance(given, Mapping):
            return {key: cls._whole(value) for key, value in given.items()}
        if isinstance(given, bool):
            raise ValueError("Input should be a whole number")
        return int(given) if isinstance(given, Integral) else given

    @field_validator("model_args", mode="before")
    @classmethod
    def _plain(cls, given: object) -> dict[str, Any]:
        return plain_arguments({} if given is None else given)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Make options from untyped values.

        Raises:
            InputError: a key is unknown or a value has the wrong type.
        """
        for key in given:
            if key not in cls.model_fields:
                raise unknown("option", str(key), cls.model_fields)
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise InputError(explain(error)) from None


class RunConfig(DataOptions):
    """A fully resolved run: canonical attack texts, all parameters, both training plans."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: str
    params: dict[str, Any]
    sequence: list[str]
    training: list[str]
    regime: Literal["continual", "joint", "meta"]
    unseen: list[str]
    eval: list[str]
    dataset: str
    data_dir: str | None
    model: str
    plan: TrainPlan
    pretrain: PretrainPlan
    points: dict[str, int]
    seed: int
    device: str
    threads: int | None
    target_aware: bool
    plugins: list[str] = Field(default_factory=list)
    """Defenses and attacks that were named as ``package.module:name``; using them imports that code."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's factory."""
    weights: Weights | None = None
    """The weights that pretraining starts from, if not fresh ones."""

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
        """Leave out keys that older records do not have, where they have no value."""
        tree = write(self)
        return {key: value for key, value in tree.items() if value or key not in LATER_KEYS}

    @property
    def network(self) -> str:
        """The model with its further arguments, as tables show it."""
        return str(model_name({"model": self.model, "model_args": self.model_args}))

    @property
    def protocol(self) -> str:
        """12 hexadecimal digits over the evaluation: attacks, points and the evaluator's version."""
        return protocol_of([*self.sequence, *self.unseen, *self.eval], self.points)

    @property
    def stages(self) -> int:
        """How many stages are trained: one per attack in the continual regime, otherwise one."""
        return len(self.sequence) if self.regime == "continual" else 1

    @property
    def stage_plan(self) -> TrainPlan:
        """The plan of one stage; every regime gets the same total number of epochs, if not set otherwise."""
        if self.plan.joint_epochs == "one":
            return self.plan
        epochs = self.plan.epochs * len(self.sequence) // self.stages
        return self.plan.model_copy(update={"epochs": epochs})


def protocol_of(attacks: Sequence[str], points: Mapping[str, int], abstain: str | None = None) -> str:
    """12 hexadecimal digits over the evaluated attacks, in any order, their points and the evaluator.

    A model that may ``abstain`` has another protocol than one that must answer.
    """
    values = (EVALUATION_VERSION, sorted(attacks), sorted(points.items()))
    content = repr(values if abstain is None else (*values, abstain))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def explain(error: ValidationError) -> str:
    """The first fault of a pydantic error, as ``key: fault (given …)``."""
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ").replace("\n", " ")
    key = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("function", "union")))
    # A fault without a key concerns several values, which the message names.
    return f"{key}: {message} (given {reprlib.repr(fault['input'])})".replace("\n", " ") if key else message


def merge(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` updated with the ``given`` options.

    Values that a record resolved for its old choices are dropped if a new choice makes them stale. A new
    defense drops parameters and regime. A new model drops its arguments. A new sequence drops the training
    texts, and its attacks from unseen. A new data set drops everything that followed from its budgets,
    including attacks' knobs. Points of attacks that are no longer measured are dropped.
    """
    merged = dict(config)
    changed = {key for key in given if given[key] != config.get(key)}
    if "defense" in changed:
        _drop(merged, "params", "regime", "target_aware")
    if "model" in config and changed & {"model", "dataset"}:
        _drop(merged, "model_args")
    if "training" in config:
        if changed & {"sequence", "train_set", "dataset"}:
            _drop(merged, "training")
        if "dataset" in changed:
            _drop(merged, *DataOptions.model_fields)
            _drop(merged, "model", "plan", "pretrain", "points")
            for key in _lists(merged, *ATTACK_LISTS):
                merged[key] = [attack_name(text) for text in merged[key]] or "none"
        if "sequence" in changed:
            _make_room(merged, as_text(given["sequence"]))
    _rescale_warmup(merged, given)
    for key, value in given.items():
        merged[key] = {**merged.get(key, {}), **value} if key in MERGED else value
    points = merged.get("points")
    if isinstance(points, dict) and "points" not in given and changed & set(ATTACK_LISTS):
        gone = _measured(config) - _measured(merged)
        merged["points"] = {key: value for key, value in points.items() if key not in gone}
    return merged


def _drop(merged: dict[str, Any], *keys: str) -> None:
    for key in keys:
        merged.pop(key, None)


def _make_room(merged: dict[str, Any], sequence: str) -> None:
    """Remove a new sequence's attacks from the other lists."""
    names = {name for name, _ in parse_attacks(sequence)} if sequence.strip() else set()
    for key in _lists(merged, "unseen", "eval"):
        kept = [text for text in merged[key] if attack_name(text) not in names]
        merged[key] = kept or "none"
        names |= {attack_name(text) for text in kept}


def _measured(options: Mapping[str, Any]) -> set[str]:
    """The names of all attacks that ``options`` measure."""
    names: set[str] = set()
    for key in ATTACK_LISTS:
        given = attack_texts(key, options.get(key, Options.model_fields[key].default))
        text = as_text(given or "").strip()
        if key == "unseen" and text == "auto":
            names.update(DEFAULT_UNSEEN)
        elif text not in ("", "none"):
            names.update(name.removeprefix("curriculum:") for name, _ in parse_attacks(text))
    return names


def _lists(merged: Mapping[str, Any], *keys: str) -> list[str]:
    """The keys whose values are lists of attacks, as in records; texts from users stay unchanged."""
    return [key for key in keys if isinstance(merged.get(key), list)]


def _rescale_warmup(merged: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Keep the recorded warm-ups' shares of the stage if the number of epochs changes."""
    plan = merged.get("plan") or {}
    before = plan.get("epochs")
    epochs = given.get("set", {}).get("epochs", given.get("epochs"))
    if epochs is None or not isinstance(before, int) or before < 1:
        return
    for key in ("eps_warmup", "warmup"):
        if isinstance(warmup := plan.get(key), float):
            plan = {**plan, key: warmup * parse_number("epochs", epochs) / before}
            merged["plan"] = plan


def as_text(attacks: str | Sequence[str]) -> str:
    """One attack text from a list of them."""
    return attacks if isinstance(attacks, str) else ",".join(attacks)


def attack_texts(key: str, given: object) -> str | list[str] | None:
    """Attacks as a caller gives them: one text, or a list of texts; None if there are none.

    Raises:
        InputError: the value is anything else.
    """
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, Sequence) or any(not isinstance(text, str) for text in given):
        raise InputError(
            f"{key}={reprlib.repr(given)} must be a text such as fgsm,pgd:steps=50, or a list of them"
        )
    return list(given)
