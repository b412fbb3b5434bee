"""The grid file: axes, options common to all cells, excluded and added cells."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advbench.config.files import kind_of, read_yaml
from advbench.config.options import MERGED, Options, as_text
from advbench.config.plugins import code_named
from attacks_pool.errors import InputError, unknown

MOST_SEEDS = 1000


def parse_seeds(given: Any, *, counts: bool = True, first: int = 0, name: str = "seeds:") -> list[int]:
    """Parse seeds from a number, a list or a text such as ``0-4`` and ``0,3,7``.

    Args:
        given: the value in the file, or the text on the command line.
        counts: whether a single number is the number of seeds (``seeds: 5``) or the only seed (``seed: 5``).
        first: the seed from which a number of seeds counts up.
        name: how an error calls the option.

    Raises:
        InputError: the value is malformed, or a seed is duplicated or out of range, or there are over 1,000.
    """
    listed = "0,3,7" if name.startswith("--") else "[0, 3, 7]"
    wrong = InputError(f"{name} {given!r} cannot be read: write 5, {listed} or 0-4")
    seeds = _listed(given, counts, first, wrong)
    if not 0 < len(seeds) <= MOST_SEEDS or len(set(seeds)) != len(seeds):
        raise InputError(f"{name} {given!r} must name 1 to {MOST_SEEDS:,} different seeds")
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed < 2**63:
            raise InputError(f"{name} {given!r} names seed {seed}: a seed is at least 0 and below 2**63")
    return list(seeds)


def _listed(given: Any, counts: bool, first: int, wrong: InputError) -> range | list[int]:
    if isinstance(given, list):
        if not all(type(one) is int for one in given):
            raise wrong
        return given
    if type(given) is int:
        return _up_to(first, first + given) if counts else [given]
    if not isinstance(given, str):
        raise wrong
    try:
        if "-" in given:
            low, high = (int(part) for part in given.split("-"))
            return _up_to(low, high + 1)
        if "," in given:
            return [int(part) for part in given.split(",")]
        return _up_to(first, first + int(given)) if counts else [int(given)]
    except ValueError:
        raise wrong from None


def _up_to(low: int, end: int) -> range:
    # Limit the length to just more than is allowed: len() of a longer range may overflow.
    return range(low, min(end, low + MOST_SEEDS + 1))


AXES = ("dataset", "model", "sequence", "defense", "seed")
"""The axes, the slowest-changing first, so that related cells are adjacent."""
PLURALS = {"datasets": "dataset", "models": "model", "sequences": "sequence", "defenses": "defense"}
OWN_OPTIONS = ("dataset", "sequence", "defense")
"""Axes whose values may be mappings, with further options for these values."""
LISTS = ("exclude", "include")
MOST_CELLS = 10_000


@dataclass(frozen=True)
class GridCell:
    """One run of a grid: its options, and the seed for drawing ``sequence: sample:k``."""

    options: dict[str, Any]
    sample_seed: int


def read_grid(path: Path, *, trust: bool = False) -> list[GridCell]:
    """The cells of a grid file, in order.

    Args:
        path: a YAML or JSON file.
        trust: whether ``package.module:name``, whose code is imported, may name models and the like in it.

    Raises:
        InputError: the file cannot be read, a key or a value is wrong, a rule of ``exclude`` matches nothing,
            there are no cells or more than ``MOST_CELLS``, or code needs ``trust``.
    """
    content = read_yaml(path, "grid")
    try:
        if not isinstance(content, dict):
            raise InputError(f"it must hold key: value pairs, not {kind_of(content)}")
        cells = parse_grid(content)
        for cell in cells:
            named = code_named(cell.options)
            if named and not trust:
                raise InputError(f"{named[0]} is code to import: add --trust if you trust it")
    except InputError as error:
        raise InputError(f"grid {path}: {error}") from None
    return cells


def parse_grid(content: Mapping[Any, Any]) -> list[GridCell]:
    """The cells that the mapping of a grid file describes; see :func:`read_grid`."""
    given = _singular(content)
    exclude, include = (_mappings(key, given.pop(key, [])) for key in LISTS)
    if not set(given) & set(AXES) and not include:
        raise InputError(f"it is empty: give at least one of {', '.join(AXES)}")
    cells = _expand(given) if set(given) & set(AXES) else []
    for number, rule in enumerate(exclude, 1):
        matches = _matcher(rule)
        kept = [cell for cell in cells if not matches(cell.options)]
        if len(kept) == len(cells):
            raise InputError(f"exclude, entry {number}, matches no cell: {rule}")
        cells = kept
    for number, extra in enumerate(include, 1):
        cells += _expand(_completed(given, extra, number))
        _check_count(len(cells))
    if not cells:
        raise InputError("exclude leaves no cell")
    for cell in cells:
        Options.of(cell.options)
    return cells


def _singular(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The mapping with singular keys; ``seeds`` is parsed, since it may be a count."""
    found: dict[str, Any] = {}
    for given, value in content.items():
        key = str(given).replace("-", "_")
        name = "seed" if key == "seeds" else PLURALS.get(key, key)
        if name not in Options.model_fields and name not in LISTS:
            raise unknown("key", str(given), {*PLURALS, "seeds", *LISTS, *Options.model_fields})
        if name in found:
            raise InputError(f"{name!r} is given twice")
        found[name] = parse_seeds(value) if key == "seeds" else value
    return found


def _mappings(key: str, given: Any) -> list[dict[Any, Any]]:
    if not isinstance(given, list) or not all(isinstance(entry, dict) and entry for entry in given):
        raise InputError(f"{key} must be a list of mappings such as {{defense: air, seed: 1}}")
    return given


def _expand(given: Mapping[str, Any]) -> list[GridCell]:
    """All combinations of the axes, each with all other options."""
    for key in LISTS:
        if key in given:
            raise InputError(f"{key} is allowed only at the top of the file")
    axes = {key: _values(key, given[key]) for key in AXES if key in given}
    common = {key: value for key, value in given.items() if key not in AXES}
    _check_count(math.prod(len(values) for values in axes.values()))
    seeds = axes.get("seed", [0])
    cells = []
    for values in itertools.product(*axes.values()):
        options = dict(common)
        for key, value in zip(axes, values, strict=True):
            _put(options, value if isinstance(value, dict) else {key: value})
        cells.append(GridCell(options, sample_seed=seeds[0]))
    return cells


def _check_count(count: int) -> None:
    if count > MOST_CELLS:
        raise InputError(f"it has {count:,} cells; at most {MOST_CELLS:,} are allowed")


def _put(options: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        both = key in MERGED and isinstance(value, dict) and isinstance(options.get(key, {}), dict)
        options[key] = {**options.get(key, {}), **value} if both else value


def _values(key: str, given: Any) -> list[Any]:
    """The values of an axis, checked."""
    if key == "seed":
        return parse_seeds(given, counts=False)
    values = given if isinstance(given, list) else [given]
    if not values:
        raise InputError(f"{key} is an empty list")
    return [_value(key, value) for value in values]


def _value(key: str, value: Any) -> Any:
    if key in OWN_OPTIONS and isinstance(value, dict):
        return _own_options(key, value)
    if key == "sequence" and isinstance(value, list) and value and all(isinstance(x, str) for x in value):
        return as_text(value)
    if key == "model" and value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{key}: {value!r} is {kind_of(value)}, expected text")
    return value


def _own_options(axis: str, entry: dict[Any, Any]) -> dict[str, Any]:
    """The options of a defense, sequence or data set with options of its own."""
    found = _singular(entry)
    if axis == "sequence" and isinstance(found.get(axis), list):
        found[axis] = _value(axis, found[axis])
    if not isinstance(found.get(axis), str):
        raise InputError(f"{axis}: {entry!r} must name one under {axis!r}")
    for key in (*AXES, *LISTS):
        if key in found and key != axis:
            raise InputError(f"{axis} {found[axis]!r} cannot have a {key} of its own: use include")
    return found


def _completed(given: Mapping[str, Any], extra: Mapping[Any, Any], number: int) -> dict[str, Any]:
    """An entry of ``include`` with all common options, and with the axes that have a single value."""
    own = _singular(extra)
    found = {key: value for key, value in given.items() if key not in AXES}
    for key in AXES:
        if key in given and key not in own:
            found[key] = _values(key, given[key])
            if len(found[key]) > 1:
                raise InputError(
                    f"include, entry {number}, must name a {key}: the grid has {len(found[key])}"
                )
    _put(found, own)
    return found


def _matcher(rule: Mapping[Any, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """A function that tests whether a cell's options have one of the rule's values for every key."""
    wanted: dict[str, list[Any]] = {}
    for key, value in _singular(rule).items():
        if key in LISTS:
            raise InputError(f"{key} is allowed only at the top of the file")
        values = _values(key, value) if key in AXES else value if isinstance(value, list) else [value]
        if any(isinstance(one, dict) for one in values if key in OWN_OPTIONS):
            raise InputError(f"exclude names a {key}; its other options are keys beside it")
        wanted[key] = [_plain(key, one) for one in values]

    def matches(options: Mapping[str, Any]) -> bool:
        every = Options.of(options).model_dump()
        return all(_plain(key, every[key]) in values for key, values in wanted.items())

    return matches


def _plain(key: str, value: Any) -> Any:
    return as_text(value).replace(" ", "") if key == "sequence" else value
