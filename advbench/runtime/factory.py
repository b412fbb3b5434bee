"""Finds ``package.module:factory``, installed or below the current directory, with one-line errors."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from attacks_pool.errors import InputError, unknown


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def find_factory(text: str) -> Callable[..., Any]:
    """Import the callable ``package.module:name``.

    Raises:
        InputError: As `find_named`, or ``name`` is not a callable.
    """
    factory: Callable[..., Any] = find_named(text)
    if not callable(factory):
        name = text.partition(":")[2]
        raise InputError(
            f"model {text!r}: {name} is {type(factory).__name__}, expected a function or a class"
        )
    return factory


def find_named(text: str, *, kind: str = "model", what: str = "factory") -> Any:
    """Import the object ``package.module:name``; errors describe it with ``kind`` and ``what``.

    An importable module is preferred to a file below the current directory.

    Raises:
        InputError: The text is malformed, the module is missing or fails to import, or has no such name.
    """
    module_name, _, name = text.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"{kind} {text!r} is not of the form package.module:{what}")
    try:
        module = _installed(module_name) or _local(module_name, Path.cwd())
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{kind} {text!r}: importing {module_name} failed: {one_line(error)}{_beside(error)}"
        ) from error
    if module is None:
        raise InputError(
            f"{kind} {text!r}: no module {module_name!r}, neither installed nor below the current directory"
        )
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"{kind} {what.lower()}", name, public, see=f"in module {module_name}{_shadow(module)}")
    return getattr(module, name)


def _beside(error: BaseException) -> str:
    """A hint for a failed import of a file in the current directory, where only the factory is searched."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    top = (name or "").partition(".")[0]
    if top and PathFinder.find_spec(top, [str(Path.cwd())]) is not None:
        return " (it is in the current directory: set PYTHONPATH=. to make it importable)"
    return ""


def _shadow(module: ModuleType) -> str:
    """A hint on which file was imported, if the current directory has another file of that name."""
    found = Path(getattr(module, "__file__", None) or ".")
    stem = Path.cwd().joinpath(*module.__name__.split("."))
    here = next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)
    if here is None or here.resolve() == found.resolve():
        return ""
    where = str(found) if found.is_file() else "a built-in one"
    return f": {where}, which comes before the file of that name here: rename yours"


def accepted(factory: Callable[..., Any], offered: dict[str, Any], always: str) -> dict[str, Any]:
    """The ``offered`` arguments in the factory's signature; ``always`` is included if it has ``**kwargs``."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    by_name = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        by_name.add(always)
    return {name: value for name, value in offered.items() if name in by_name}


def _installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # If an import inside this module fails, the module exists but is broken.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def _local(name: str, folder: Path) -> ModuleType | None:
    """Import the module from ``folder``, without adding the folder to ``sys.path`` for other imports."""
    top = name.partition(".")[0]
    if top in sys.modules:
        # Another package has the first name (such as "models"), so load the single file directly.
        stem = folder.joinpath(*name.split("."))
        files = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
        return _execute(importlib.util.spec_from_file_location(name, files[0])) if files else None
    spec = PathFinder.find_spec(top, [str(folder)])
    if spec is None:
        return None
    module = _execute(spec)
    return module if name == top else _installed(name)


def _execute(spec: ModuleSpec | None) -> ModuleType | None:
    if spec is None:
        return None
    module = importlib.util.module_from_spec(spec)
    # Register the module first, as an import does, so that its own relative imports find it.
    sys.modules[spec.name] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
