"""From a text to a class of defense: a registered name, or ``package.module:Class``."""

from __future__ import annotations

import inspect

from advbench.models.factory import find_named
from attacks_pool.errors import InputError
from defenses import Defense, DefenseInfo, registry


def find_defense(text: str) -> type[Defense]:
    """The class that a registered name, or ``package.module:Class``, names.

    A module need not be installed: one below the current directory will do.

    Raises:
        InputError: no such name, module or class, a module that fails to import, or a class that is none of
            defenses.
    """
    if ":" not in text:
        return registry.resolve(text)[0]
    found = find_named(text, kind="defense", what="Class")
    if not inspect.isclass(found):
        raise InputError(f"defense {text!r} is {type(found).__name__}, expected a class")
    if not issubclass(found, Defense):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        raise InputError(f"defense {text!r} is a subclass of {bases}, expected one of defenses.Defense")
    if not isinstance(getattr(found, "info", None), DefenseInfo):
        raise InputError(f"defense {text!r} has no info = DefenseInfo(...)")
    return found
