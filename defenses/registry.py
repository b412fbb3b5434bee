"""Finds defenses by name: the modules of this package, and those that other packages add by entry points."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from torch import nn

from attacks_pool.errors import InputError, unknown
from defenses.base import Defense
from defenses.metadata import DefenseInfo, Regime, parse_parameters

ENTRY_POINTS = "advbench.defenses"
Class = TypeVar("Class", bound=type[Defense])


class Registry:
    """The registry of defenses. The first look-up imports ``defenses.methods`` and loads entry points."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Defense]] = {}
        self._aliases: dict[str, tuple[str, Regime]] = {}
        self._loaded = False
        self.problems: dict[str, str] = {}
        """Entry points that failed to load, each with its one-line cause."""

    def register(self, defense: Class) -> Class:
        """Register a class; use it as a decorator.

        Raises:
            InputError: the class is not a Defense or has no ``info``, or its name is taken.
        """
        if not (inspect.isclass(defense) and issubclass(defense, Defense)):
            raise InputError(f"{defense!r} is not a subclass of defenses.Defense")
        info = getattr(defense, "info", None)
        if not isinstance(info, DefenseInfo):
            raise InputError(f"{defense.__name__} has no info = DefenseInfo(...)")
        for name in (info.name, *info.aliases):
            other = self._classes.get(name) or self._classes.get(self._aliases.get(name, ("",))[0])
            if other is not None and _place(other) != _place(defense):
                raise InputError(
                    f"defense {name!r} is registered twice: by {_place(other)} and {_place(defense)}"
                )
        self._classes[info.name] = defense
        self._aliases.update({alias: (info.name, regime) for alias, regime in info.aliases.items()})
        return defense

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def resolve(self, name: str, regime: str | None = None) -> tuple[type[Defense], Regime]:
        """The class with this name or alias, and the regime to run it in (by default its first one).

        Raises:
            InputError: no defense has this name, or it does not support ``regime``.
        """
        self._load()
        if name in self._aliases:
            name, fixed = self._aliases[name]
            if regime not in (None, fixed):
                raise InputError(
                    f"regime {regime!r} does not go with this name: it means {name} in {fixed!r}"
                )
            regime = fixed
        if name in self.problems and name not in self._classes:
            raise InputError(f"defense {name!r} could not be loaded: {self.problems[name]}")
        if name not in self._classes:
            raise unknown("defense", name, [*self._classes, *self._aliases])
        defense = self._classes[name]
        regimes = defense.info.regimes
        if regime is None:
            return defense, regimes[0]
        for known in regimes:
            if known == regime:
                return defense, known
        raise InputError(
            f"defense {name!r} does not support regime {regime!r} (allowed: {', '.join(regimes)})"
        )

    def build(
        self, name: str, model: nn.Module, *, seed: int = 0, parameters: Mapping[str, Any] | None = None
    ) -> Defense:
        """Build the defense ``name`` around ``model`` after checking its parameters."""
        defense, _ = self.resolve(name)
        settings = parse_parameters(defense, name, parameters or {})
        return construct(defense, model, seed=seed, parameters=settings)

    def is_taken(self, name: str) -> bool:
        """Whether a defense, an alias or a plug-in that failed to load has this name."""
        self._load()
        return name in self._classes or name in self._aliases or name in self.problems

    def class_named(self, name: str) -> type[Defense] | None:
        """The registered class with this class name, such as ``AIR``, or None."""
        self._load()
        return next((found for found in self._classes.values() if found.__name__ == name), None)

    def class_names(self) -> list[str]:
        """The class names of the registered defenses, sorted."""
        self._load()
        return sorted(found.__name__ for found in self._classes.values())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module("defenses.methods")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value)):
            try:
                found = point.load()
                if not inspect.ismodule(found):
                    self.register(found)
            except (Exception, SystemExit) as error:  # third-party modules may raise anything
                self.problems[point.name] = _cause(point, error)


def construct(
    defense: type[Defense], model: nn.Module, *, seed: int, parameters: Mapping[str, Any]
) -> Defense:
    """Build a ``defense`` around ``model``, with parameters already checked by ``parse_parameters``."""
    seeded = {"seed": seed} if "seed" in inspect.signature(defense).parameters else {}
    built = defense(model, **seeded, **parameters)
    built.seed, built.settings = seed, dict(parameters)
    return built


def _cause(point: EntryPoint, error: BaseException) -> str:
    """Describe in one line why an entry point failed to load, and which package it belongs to."""
    lines = str(error).strip().splitlines()
    package = f" (package {point.dist.name})" if point.dist is not None else ""
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}{package}"


def _place(defense: type) -> str:
    return f"{defense.__module__}:{defense.__qualname__}"


registry = Registry()
"""The registry that the command line and the benchmark use."""

register = registry.register
