"""Further arguments of a model's factory: ``--model-arg width=2``."""

from __future__ import annotations

import ast
import inspect
import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from attacks_pool.errors import InputError, unknown

WORDS = {"true": True, "false": False, "none": None, "null": None}


def argument_of(text: str) -> Any:
    """The value that a user wrote: a number, a truth value, none, a list of these, or else the text itself.

    >>> argument_of("2"), argument_of("1e-3"), argument_of("true"), argument_of("2,2"), argument_of("gelu")
    (2, 0.001, True, [2, 2], 'gelu')
    """
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    try:
        return plain_value("", value)
    except ValueError:
        return text


def plain_value(key: str, value: Any) -> Any:
    """``value`` as a record stores it, as JSON; NumPy's numbers become plain ones.

    Raises:
        ValueError: it is anything else, such as a module or an infinite number.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain_value(f"{key}.{name}", one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain_value(key, one) for one in value]
    raise ValueError(
        f"{key}={reprlib.repr(value)} must be a finite number, a text, true, false, none, or a "
        "list or mapping of these"
    )


def plain_arguments(given: object) -> dict[str, Any]:
    """Arguments of a model as a record stores them.

    Raises:
        ValueError: they are not a mapping from names, or a value cannot be stored.
    """
    if not isinstance(given, Mapping) or any(not isinstance(key, str) for key in given):
        raise ValueError("model_args must map names to values, as {'width': 2} does")
    return {key: plain_value(f"model_args.{key}", value) for key, value in given.items()}


def check_arguments(
    text: str, factory: Callable[..., Any], given: Mapping[str, Any], *, taken: Collection[str]
) -> None:
    """Check that ``factory`` of the model ``text`` takes the arguments that a user gave.

    Args:
        text: the model, for errors.
        factory: what is called.
        given: the user's arguments.
        taken: the arguments that follow from the data set.

    Raises:
        InputError: an argument follows from the data set, or the factory has no such parameter.
    """
    refuse_arguments(text, given, taken)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for key in given:
        if key not in names:
            allowed = [name for name in names if name not in taken]
            see = f"it takes {', '.join(allowed) or 'none'}"
            raise unknown(f"argument of {text}", key, allowed, see=see)


def refuse_arguments(text: str, given: Collection[str], taken: Collection[str]) -> None:
    """Refuse arguments that are not the user's to choose.

    Raises:
        InputError: an argument of ``given`` is among ``taken``.
    """
    for key in given:
        if key in taken:
            raise InputError(
                f"model {text!r}: the argument {key!r} cannot be given: classes, channels and image size "
                "follow from the data set, and weights are fresh or those of --weights"
            )
