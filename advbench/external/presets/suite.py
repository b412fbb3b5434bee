"""The attacks and points of one evaluation: those that a user lists, or those of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from advbench.config.options import as_text
from advbench.config.plugins import code_named, import_attacks
from advbench.config.resolve import parse_points
from advbench.data import DataSet
from advbench.external.presets.preset import ALL, DEFAULT, Preset, find_preset
from advbench.external.request import EvalRequest
from attacks_pool import Attack, InputError, pool

UNRECORDED = ("standard", "screen", "autoattack")
"""Built-in presets from before records named their preset; their records stay as they were."""


NONE = "none"
"""Stands for a list of no attacks: the accuracy on the test points as they are."""


@dataclass(frozen=True)
class Suite:
    """What an evaluation measures.

    Attributes:
        attacks: the attacks, with budgets; none for the accuracy on the test points as they are.
        points: test points by attack name; ``default`` covers the others, and without it they take all.
        recorded: further keys of the record's config.
    """

    attacks: list[Attack]
    points: dict[str, int]
    recorded: dict[str, Any]


def suite(request: EvalRequest, data: DataSet) -> Suite:
    """The attacks and points that a request asks for; by default the preset ``standard``.

    Raises:
        InputError: both attacks and a preset are given, the preset is for other data sets, fixes the points
            or imports code that is not trusted, or a name or number is wrong.
    """
    if request.attacks is not None and request.preset is not None:
        raise InputError("attacks and preset are both given: a preset is a list of attacks")
    listed, points = request.attacks, request.points
    recorded: dict[str, Any] = {}
    if listed is None:
        preset = find_preset(request.preset or DEFAULT)
        _check(preset, request, data)
        listed = preset.attacks
        points = points if preset.points is None else None if preset.points == ALL else preset.points
        if not (preset.builtin and preset.name in UNRECORDED):
            recorded["preset"] = {"name": preset.name, "sha256": preset.sha256}
    written, plugins = import_attacks(listed)
    text = as_text(written)
    attacks = [] if text.strip() == NONE else pool.sequence(text, budget=data.budget)
    if plugins:
        recorded["plugins"] = plugins
    return Suite(attacks, parse_points(points, data, attacks), recorded)


def _check(preset: Preset, request: EvalRequest, data: DataSet) -> None:
    start = f"preset {preset.name!r}"
    if preset.datasets and data.name not in preset.datasets:
        own = ",".join(preset.attacks)
        raise InputError(
            f"{start} is for {' or '.join(preset.datasets)}, not {data.name!r}: --attacks {own} runs its "
            "attacks on any data set"
        )
    if preset.points is not None and request.points is not None:
        raise InputError(f"{start} fixes points={preset.points}: leave out points")
    named = code_named({"eval": list(preset.attacks)})
    if named and not request.trust:
        raise InputError(
            f"{start} names {named[0]}, and using it imports that code: add --trust if you trust it"
        )
