"""The settings that distinguish rows of one defense."""

from collections.abc import Sequence
from typing import Any

from leaderboards.boards.row import Row
from leaderboards.statistics.results import canonical


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """For each row, the settings that differ among rows of its defense and regime: ``name=value, …``."""
    every = [_settings(row) for row in rows]
    values: dict[tuple[str, str], dict[str, set[str | None]]] = {}
    members: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        members.setdefault((row.defense, row.regime), []).append(number)
    for kind, numbers in members.items():
        names = {name for number in numbers for name in every[number]}
        values[kind] = {name: {every[number].get(name) for number in numbers} for name in names}
    return [
        ", ".join(
            f"{name}={value}"
            for name, value in every[number].items()
            if len(values[row.defense, row.regime][name]) > 1
        )
        for number, row in enumerate(rows)
    ]


def _settings(row: Row) -> dict[str, str]:
    plan = {f"plan.{name}": value for name, value in row.plan.items()}
    pretrain = row.pretrain if isinstance(row.pretrain, dict) else {"": row.pretrain}
    before = {f"pretrain.{name}".rstrip("."): value for name, value in pretrain.items()}
    training = {"training": list(row.training)}
    whole: dict[str, Any] = {**row.params, **plan, **before, **training}
    return {name: value if isinstance(value, str) else canonical(value) for name, value in whole.items()}
