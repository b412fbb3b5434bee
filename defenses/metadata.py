"""What is known of a defense before it trains."""

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
    """Name and default of each parameter that a user may set."""
    signature = inspect.signature(defense.__init__)  # type: ignore[misc]
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in NOT_PARAMETERS
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def parse_parameters(defense: type, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` in the types of the constructor's annotations, defaults filled in; text is read as YAML.

    Raises:
        InputError: unknown parameter, a value of the wrong type, or one that is not finite.
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
            raise InputError(f"{key}={value} is no value for {name}: {cause}") from None
        if isinstance(read, bool) and not isinstance(values[key], bool):
            raise InputError(f"{key}={value} is no value for {name}: it is true or false, and no number")
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise InputError(f"{key}={value} is no value for {name}: it is not finite")
    missing = [key for key in declared if key not in values]
    if missing:
        raise InputError(f"defense {name!r} needs a value for {missing[0]!r}: --set {missing[0]}=VALUE")
    return values


def _hints(defense: type) -> dict[str, Any]:
    """The constructor's annotations; none where they name what was imported for type checkers alone."""
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
        # A date that is none, say: whoever wants a number will refuse the text.
        return value


Regime = Literal["continual", "joint", "meta"]


class DefenseInfo(BaseModel):
    """Frozen metadata of a defense.

    ``regimes`` are those that it runs in, the default first; ``aliases`` are further names, each for a fixed
    regime; ``memory`` is the number of training samples that it keeps between stages; ``grows`` says that
    every stage adds parameters, as many each. ``transfer`` asks for the run's attacks crafted on a surrogate
    as well, in cells beside the audit's probes.
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
    aliases: dict[str, Regime] = Field(default_factory=dict)
