"""Sequences drawn from the pool."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import get_args

from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import FAMILIES, AttackInfo, Norm


def sample(
    infos: Sequence[AttackInfo],
    k: int,
    seed: int,
    families: Iterable[str] | None = None,
    norms: Iterable[str] | None = None,
) -> list[str]:
    """Names of ``k`` different attacks: a family is drawn again only when all others are used as often.

    Raises:
        InputError: ``k`` below 1 or more than there are, unknown family or norm.
    """
    wanted_families = _checked("family", families, FAMILIES)
    wanted_norms = _checked("norm", norms, get_args(Norm))
    groups: dict[str, list[str]] = {}
    for info in sorted(infos, key=lambda info: info.name):
        if (wanted_families is None or info.family in wanted_families) and (
            wanted_norms is None or info.norm in wanted_norms
        ):
            groups.setdefault(info.family, []).append(info.name)
    available = sum(map(len, groups.values()))
    if not 1 <= k <= available:
        raise InputError(f"cannot sample {k} attacks: between 1 and {available} are to be had")
    draw = random.Random(seed)
    for names in groups.values():
        draw.shuffle(names)
    chosen: list[str] = []
    while len(chosen) < k:
        order = sorted(family for family, names in groups.items() if names)
        draw.shuffle(order)
        chosen += [groups[family].pop() for family in order][: k - len(chosen)]
    return chosen


def _checked(kind: str, given: Iterable[str] | None, allowed: Iterable[str]) -> set[str] | None:
    if given is None:
        return None
    allowed = list(allowed)
    wanted = {given} if isinstance(given, str) else set(given)
    for name in sorted(wanted):
        if name not in allowed:
            raise unknown(kind, name, allowed)
    return wanted
