"""Defenses and attacks named as ``package.module:name``: importing them is running their code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advbench.config.options import Options
from advbench.data import imports_data
from advbench.models import imports_code
from advbench.runtime.factory import find_named
from advbench.runtime.hashing import PACKAGES
from attacks_pool import adapters, pool
from attacks_pool.errors import InputError
from attacks_pool.registry import CURRICULUM, SAMPLE
from attacks_pool.sequences import parse_attacks
from defenses import Defense, DefenseInfo, registry

PLACE = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
ATTACKS = ("sequence", "unseen", "eval")
"""Options that list attacks."""


def names_code(text: str) -> bool:
    """Whether an attack or a defense is named by where its code is: ``package.module:name``."""
    start = text.partition(":")[0].lower()
    reserved = start in adapters.LIBRARIES or start in (SAMPLE, CURRICULUM)
    return bool(PLACE.fullmatch(text)) and not reserved and start not in pool.names()


def import_defense(text: str) -> type[Defense]:
    """The class that ``package.module:Class`` names.

    A module need not be installed: one below the current directory will do.

    Raises:
        InputError: no such module or class, a module that fails to import, or a class that is no defense.
    """
    found = find_named(text, kind="defense", what="Class")
    if not inspect.isclass(found):
        raise InputError(f"defense {text!r} is {type(found).__name__}, expected a class")
    if not issubclass(found, Defense):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        raise InputError(f"defense {text!r} is a subclass of {bases}, expected one of defenses.Defense")
    if not isinstance(getattr(found, "info", None), DefenseInfo):
        raise InputError(f"defense {text!r} has no info = DefenseInfo(...)")
    return found


def import_attack(text: str) -> str:
    """The registered name of the function that ``package.module:function`` names.

    Raises:
        InputError: no such module or function, a module that fails to import, or a function that no
            ``attacks_pool.register`` decorates.
    """
    found = find_named(text, kind="attack", what="function")
    name = next((name for name in pool.names() if pool.entry(name).function is found), None)
    if name is None:
        raise InputError(
            f"attack {text!r} is not registered: decorate it with attacks_pool.register(AttackInfo(...))"
        )
    return name


def import_attacks(given: str | Sequence[str]) -> tuple[str | list[str], list[str]]:
    """Attacks as a user wrote them with registered names, and the texts that code was imported for."""
    texts = [given] if isinstance(given, str) else given
    imported: list[str] = []
    written = []
    for text in texts:
        pieces = parse_attacks(text) if ":" in text else []
        places = [name for name, _ in pieces if names_code(name)]
        if places:
            names = {place: import_attack(place) for place in places}
            imported += places
            text = ",".join(written_as(names.get(name, name), knobs) for name, knobs in pieces)
        written.append(text)
    return (written[0] if isinstance(given, str) else written), imported


def with_plugins(options: Options) -> Options:
    """The same options with registered names, after importing the code that they name.

    What was imported is in ``plugins``, for the record. Callers decide beforehand whether it is trusted.

    Raises:
        InputError: code that cannot be imported, or that is neither a defense nor an attack.
    """
    changed: dict[str, Any] = {}
    imported = list(options.plugins)
    for text in options.plugins:
        import_plugin(text)
    if names_code(options.defense):
        kind = import_defense(options.defense)
        registry.register(kind)
        imported.append(options.defense)
        changed["defense"] = kind.info.name
    for key in ATTACKS:
        changed[key], places = import_attacks(getattr(options, key))
        imported += places
    foreign = [text for text in imported if text.partition(".")[0].partition(":")[0] not in PACKAGES]
    return options.model_copy(update={**changed, "plugins": list(dict.fromkeys(foreign))})


def import_plugin(text: str) -> None:
    """Import a defense or an attack that a record names under ``plugins``.

    Raises:
        InputError: it cannot be imported, or is neither.
    """
    if not names_code(text):
        raise InputError(f"plugin {text!r} is not of the form package.module:name")
    if inspect.isclass(find_named(text, kind="plugin", what="name")):
        registry.register(import_defense(text))
    else:
        import_attack(text)


def code_named(options: Mapping[str, Any]) -> list[str]:
    """Every ``package.module:name`` among options, as errors call it; nothing is imported.

    >>> code_named({"model": "mine:network", "sequence": "fgsm,mine:blur:eps=0.1"})
    ["the model 'mine:network'", "the attack 'mine:blur'"]
    """
    found = [f"the plug-in {text!r}" for text in _texts(options.get("plugins"))]
    dataset = options.get("dataset")
    if isinstance(dataset, str) and imports_data(dataset):
        found.append(f"the data set {dataset!r}")
    model = options.get("model")
    if isinstance(model, str) and imports_code(model):
        found.append(f"the model {model!r}")
    defense = options.get("defense")
    if isinstance(defense, str) and names_code(defense):
        found.append(f"the defense {defense!r}")
    for key in ATTACKS:
        for text in _texts(options.get(key)):
            pieces = parse_attacks(text) if ":" in text else []
            found += [f"the attack {name!r}" for name, _ in pieces if names_code(name)]
    return found


def _texts(given: Any) -> Iterable[str]:
    return [given] if isinstance(given, str) else [one for one in given or () if isinstance(one, str)]


def written_as(name: str, knobs: Mapping[str, Any]) -> str:
    """An attack as users write it: ``pgd:eps=0.1,steps=7``."""
    return f"{name}:{','.join(f'{key}={value}' for key, value in knobs.items())}" if knobs else name
