"""The attacks of ``advbench eval``: those that a user lists, or a preset."""

from collections.abc import Mapping, Sequence

from advbench.config.options import as_text
from advbench.data import DataSet
from attacks_pool import Attack, InputError, pool
from attacks_pool.errors import unknown
from leaderboards.statistics.naming import attack_name

Choices = tuple[str, ...]

STANDARD: tuple[Choices, ...] = (
    ("fgsm",),
    ("pgd:restarts=5,steps=20",),
    ("apgd-ce:steps=50", "apgd:steps=50"),
    ("apgd-t:steps=25", "apgd-dlr:steps=50", "apgd:loss=dlr,steps=50"),
    ("fab-t:steps=20", "cw"),
    ("square",),
    ("pgd-l2:restarts=2,steps=40",),
)
"""Groups of attacks: a single step, iterated and adaptive gradients with two losses and with targets, the
nearest boundary, queries without gradients, another norm. The first of each group in the pool is used."""

PRESETS: Mapping[str, tuple[Choices, ...]] = {
    "standard": STANDARD,
    "screen": (("screen",),),
    "autoattack": (("autoattack",),),
}
DEFAULT = "standard"


def suite(attacks: str | Sequence[str] | None, preset: str | None, data: DataSet) -> list[Attack]:
    """The attacks to run, with the budgets of ``data``; the preset ``standard`` if neither is given.

    Raises:
        InputError: both are given, a name is unknown, or an attack does not support the images of ``data``.
    """
    if attacks is not None and preset is not None:
        raise InputError("attacks and preset are both given: a preset is a list of attacks")
    if attacks is None:
        attacks = preset_attacks(preset or DEFAULT)
    return pool.sequence(as_text(attacks), budget=data.budget)


def preset_attacks(preset: str) -> list[str]:
    """The attack texts of a preset, as far as the pool has them.

    Raises:
        InputError: there is no such preset, or none of a group's attacks is in the pool.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    known = set(pool.names())
    found = []
    for choices in PRESETS[preset]:
        text = next((text for text in choices if attack_name(text) in known), None)
        if text is None:
            raise InputError(f"preset {preset!r} needs an attack that is missing: {attack_name(choices[0])}")
        found.append(text)
    return found
