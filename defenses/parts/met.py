"""Attacks of earlier stages, kept in the training state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attacks_pool.attack import Attack
from attacks_pool.registry import pool


def noted(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """Attacks by name, with their training knobs, as a training state keeps them."""
    return [{"name": attack.name, "knobs": dict(attack.knobs)} for attack in attacks]


def recalled(notes: Sequence[dict[str, Any]]) -> list[Attack]:
    """The attacks of :func:`noted`, looked up in the pool.

    Raises:
        InputError: the pool has no attack of such a name.
    """
    return [replace(pool.bind(one["name"], one["knobs"]), training=True) for one in notes]
