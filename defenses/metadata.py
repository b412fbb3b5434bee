"""Static metadata of defenses, and the parsing of their parameters."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from attacks_pool.errors import InputError, unknown

NOT_PARAMETERS = ("self", "model", "seed")


def parameters_of(defense: type) -> dict[str, Any]:
    """Names and defaults of the constructor parameters that a user may set."""
    signature = inspect.signature(defense.__init__)  # type: ignore[misc]
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in NOT_PARAMETERS
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def parse_parameters(defense: type, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert ``given`` to the annotated types and add defaults; text values are parsed as YAML.

    Raises:
        InputError: a parameter is unknown or missing, or a value has the wrong type or is not finite.
    """
    declared = parameters_of(defense)
    hints = _hints(defense)
    values = {key: default for key, default in declared.items() if default is not inspect.Parameter.empty}
    for key, value in given.items():
        if key not in declared:
            raise unknown(f"parameter of {name}", key, declared)
        read = _read(value)
        try:
            values[key] = TypeAdapter(hints.get(key, Any)).validate_python(read)
        except ValidationError as error:
            cause = error.errors()[0]["msg"]
            raise InputError(f"{key}={value} is not valid for {name}: {cause}") from None
        if isinstance(read, bool) and not isinstance(values[key], bool):
            raise InputError(f"{key}={value} is not valid for {name}: it is true or false, not a number")
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise InputError(f"{key}={value} is not valid for {name}: it is not finite")
    missing = [key for key in declared if key not in values]
    if missing:
        raise InputError(f"defense {name!r} needs a value for {missing[0]!r}: --set {missing[0]}=VALUE")
    return values


def _hints(defense: type) -> dict[str, Any]:
    """The constructor's annotations, or none if they use names imported only for type checking."""
    try:
        return typing.get_type_hints(defense.__init__)  # type: ignore[misc]
    except NameError:
        return {}


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        # For example an invalid date; whatever needs another type will reject the text.
        return value


Regime = Literal["continual", "joint", "meta"]


class DefenseInfo(BaseModel):
    """Frozen metadata of a defense.

    ``regimes`` are those that it supports, the default first; ``aliases`` are further names, each with a
    fixed regime; ``memory`` is the number of training samples that it keeps between stages; ``grows`` means
    that each stage adds the same number of parameters. With ``transfer``, evaluation also crafts the run's
    attacks on a surrogate model, in addition to the audit's probes. ``employs`` are the parameters that name
    finished runs; a run loads their models and gives them to the defense's ``employ`` before training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    paper: str | None
    regimes: tuple[Regime, ...] = Field(min_length=1)
    target_aware: bool = False
    stochastic: bool = False
    transfer: bool = False
    memory: int = 0
    grows: bool = False
    employs: tuple[str, ...] = ()
    aliases: dict[str, Regime] = Field(default_factory=dict)
