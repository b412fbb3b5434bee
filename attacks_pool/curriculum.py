"""One attack at growing strength, as a sequence: ``curriculum:pgd:eps=0.05..0.2,stages=3``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attacks_pool.errors import InputError
from attacks_pool.metadata import Value, parse_number

if TYPE_CHECKING:
    from attacks_pool.attack import Attack
    from attacks_pool.registry import Pool

RANGE = ".."
"""Stands between the ends of a knob that a curriculum moves."""
MOST_STAGES = 1000


def from_lists(
    pool: Pool,
    name: str,
    knobs: Mapping[str, Value | Sequence[Value]],
    budget: str | None,
    training: Mapping[str, Value] | None,
) -> list[Attack]:
    """The attack with the first values of all lists among ``knobs``, with the second ones, and so on.

    Raises:
        InputError: no list, lists of several lengths, or a strength that stands twice.
    """
    moving = {knob: list(values) for knob, values in knobs.items() if isinstance(values, list | tuple)}
    lengths = {len(values) for values in moving.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(f"a curriculum of {name!r} needs lists of one length: eps=[0.05, 0.1, 0.2]")
    stages = [dict(zip(moving, values, strict=True)) for values in zip(*moving.values(), strict=True)]
    attacks = [_stage(pool, name, {**knobs, **moved}, moved, budget, training) for moved in stages]
    if len({attack.text for attack in attacks}) < len(attacks):
        raise InputError(f"a curriculum of {name!r} has the same strength twice")
    return attacks


def from_text(
    pool: Pool,
    name: str,
    knobs: Mapping[str, Value],
    budget: str | None,
    training: Mapping[str, Value] | None,
) -> list[Attack]:
    """The attack at ``stages`` strengths: knobs written ``FROM..TO`` go from the one to the other.

    An end may be a fraction (``2/255..8/255``). Ends are exact, what lies between is rounded to ten digits,
    in knobs that are whole numbers to those.

    Raises:
        InputError: no knob moves, ``stages`` is missing or out of range, or an end is no number.
    """
    moving = {knob: str(value) for knob, value in knobs.items() if RANGE in str(value)}
    if not name or not moving or "stages" not in knobs or "stages" in moving:
        shown = name or "pgd"
        raise InputError(f"this curriculum cannot be read: write curriculum:{shown}:eps=0.05..0.2,stages=3")
    count = parse_number("stages", knobs["stages"])
    if count != int(count) or not 2 <= count <= MOST_STAGES:
        raise InputError(f"stages={knobs['stages']} must be a whole number from 2 to {MOST_STAGES}")
    declared = pool.info(name).all_knobs()
    whole = {knob for knob, spec in declared.items() if spec.value_type is int}
    paths: dict[str, list[Value]] = {}
    for knob, text in moving.items():
        path = _path(f"{name}.{knob}", text, int(count))
        paths[knob] = [round(value) for value in path] if knob in whole else list(path)
    fixed = {knob: value for knob, value in knobs.items() if knob not in {"stages", *moving}}
    return from_lists(pool, name, {**fixed, **paths}, budget, training)


def _path(label: str, text: str, count: int) -> list[float]:
    ends = [parse_number(label, end.strip()) for end in text.split(RANGE)]
    if len(ends) != 2:
        raise InputError(f"{label}={text} cannot be read: write FROM..TO")
    low, high = ends
    inner = [low + (high - low) * stage / (count - 1) for stage in range(1, count - 1)]
    return [low, *(float(f"{value:.10g}") for value in inner), high]


def _stage(
    pool: Pool,
    name: str,
    knobs: Mapping[str, Any],
    moved: Mapping[str, Value],
    budget: str | None,
    training: Mapping[str, Value] | None,
) -> Attack:
    """One strength, which training has too unless ``training`` says otherwise."""
    own = {knob: value for knob, value in moved.items() if knob != "eps"}
    return pool.bind(name, knobs, budget=budget, training={**own, **(training or {})})
