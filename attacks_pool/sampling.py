"""Sequences, splits and tasks drawn from the pool: the same seed gives the same ones on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar, get_args

from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import FAMILIES, AttackInfo, Norm

NEVER_DRAWN = ("ensemble",)
"""Families that measure and do not train: what they are made of is in the pool by itself."""
Task = TypeVar("Task")


def sample(
    infos: Sequence[AttackInfo],
    k: int,
    seed: int,
    families: Iterable[str] | None = None,
    norms: Iterable[str] | None = None,
    images: tuple[int, int, int] | None = None,
) -> list[str]:
    """Names of ``k`` different attacks: a family is drawn again only when all others are used as often.

    Args:
        infos: what can be drawn; ensembles never are.
        k: how many.
        seed: decides which.
        families, norms: restrict what is drawn.
        images: (C, H, W) of the images that the attacks must be able to treat.

    Raises:
        InputError: ``k`` below 1 or more than there are, unknown family or norm.
    """
    groups = _grouped(infos, families, norms, images)
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


def split_families(
    infos: Sequence[AttackInfo],
    seed: int,
    unseen: int = 1,
    families: Iterable[str] | None = None,
    norms: Iterable[str] | None = None,
    images: tuple[int, int, int] | None = None,
) -> tuple[list[str], list[str]]:
    """Seen and unseen families, sorted: no attack of an unseen family is ever trained against.

    Args:
        infos, families, norms, images: as for :func:`sample`.
        seed: decides which.
        unseen: how many families are held out; at least one stays seen.

    Raises:
        InputError: as many families as that are not there.
    """
    known = sorted(_grouped(infos, families, norms, images))
    if not 1 <= unseen < len(known):
        raise InputError(
            f"cannot hold {unseen} families out: there are {len(known)} ({', '.join(known) or 'none'}), and "
            "one must stay"
        )
    held = random.Random(f"families {seed}").sample(known, unseen)
    return [family for family in known if family not in held], sorted(held)


def meta_tasks(attacks: Sequence[Task], n: int, seed: int) -> list[tuple[list[Task], Task]]:
    """``n`` tasks of meta-learning: the attacks to meta-train with, and a different one to meta-test with.

    Every attack is the meta-test one equally often, as far as ``n`` allows, in an order drawn with ``seed``
    (arXiv:2404.03340 holds one known attack out at each step).

    Raises:
        InputError: fewer than two attacks, or ``n`` below 1.
    """
    if len(attacks) < 2:
        raise InputError(f"meta-tasks need two attacks or more, not {len(attacks)}")
    if n < 1:
        raise InputError(f"cannot draw {n} meta-tasks: draw at least 1")
    draw = random.Random(f"tasks {seed}")
    order: list[int] = []
    while len(order) < n:
        order += draw.sample(range(len(attacks)), len(attacks))
    return [
        ([attack for index, attack in enumerate(attacks) if index != held], attacks[held])
        for held in order[:n]
    ]


def _grouped(
    infos: Iterable[AttackInfo],
    families: Iterable[str] | None,
    norms: Iterable[str] | None,
    images: tuple[int, int, int] | None,
) -> dict[str, list[str]]:
    """Names by family, of the attacks that may be drawn."""
    wanted_families = _checked("family", families, [name for name in FAMILIES if name not in NEVER_DRAWN])
    wanted_norms = _checked("norm", norms, get_args(Norm))
    groups: dict[str, list[str]] = {}
    for info in sorted(infos, key=lambda info: info.name):
        if (
            info.family not in NEVER_DRAWN
            and (wanted_families is None or info.family in wanted_families)
            and (wanted_norms is None or info.norm in wanted_norms)
            and _treats(info, images)
        ):
            groups.setdefault(info.family, []).append(info.name)
    return groups


def _treats(info: AttackInfo, images: tuple[int, int, int] | None) -> bool:
    if images is None:
        return True
    channels, height, width = images
    return (info.channels is None or channels in info.channels) and min(height, width) >= info.min_side


def _checked(kind: str, given: Iterable[str] | None, allowed: Iterable[str]) -> set[str] | None:
    if given is None:
        return None
    allowed = list(allowed)
    wanted = {given} if isinstance(given, str) else set(given)
    for name in sorted(wanted):
        if name not in allowed:
            raise unknown(kind, name, allowed)
    return wanted
