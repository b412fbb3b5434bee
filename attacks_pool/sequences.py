"""Sequences of attacks: parsed from text, built as a curriculum of growing strength, or drawn at random.

The text form is ``pgd``, ``pgd:eps=4/255,steps=50``, or several attacks separated by commas. A curriculum is
one attack at growing strength: ``curriculum:pgd:eps=0.05..0.2,stages=3``. The same seed draws the same
sequence on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args

from attacks_pool.errors import InputError, unknown
from attacks_pool.metadata import FAMILIES, AttackInfo, Norm, Value, parse_number

if TYPE_CHECKING:
    from attacks_pool.attack import Attack


def parse_attacks(text: str) -> list[tuple[str, dict[str, Value]]]:
    """Parse names and knobs, in order; knob values remain text.

    A part with ``=`` but no name is a knob of the attack before it, so commas separate both.

    >>> parse_attacks("fgsm,pgd:eps=4/255,steps=50,cw")
    [('fgsm', {}), ('pgd', {'eps': '4/255', 'steps': '50'}), ('cw', {})]

    Raises:
        InputError: the text or a part of it is empty, or a knob has no attack or is given twice.
    """
    if not text.strip():
        raise InputError("the list of attacks is empty: write for example fgsm,pgd,cw")
    attacks: list[tuple[str, dict[str, Value]]] = []
    for piece in (part.strip() for part in text.split(",")):
        head, equals, value = piece.partition("=")
        name, colon, knob = head.rpartition(":") if equals else (piece, "", "")
        if not equals or colon:
            if not name.strip():
                raise InputError(f"{text!r} has an attack without a name")
            attacks.append((name.strip().lower() if ":" not in name else name.strip(), {}))
        else:
            knob = head
        if not equals:
            continue
        if not attacks:
            raise InputError(f"{piece!r} comes before any attack: write NAME:{piece}")
        if not knob.strip() or not value.strip():
            raise InputError(f"{piece!r} cannot be read: write knob=value")
        if knob.strip() in attacks[-1][1]:
            raise InputError(f"{attacks[-1][0]}: knob {knob.strip()!r} is given twice")
        attacks[-1][1][knob.strip()] = value.strip()
    return attacks


NEVER_DRAWN = ("ensemble",)
"""Families for measurement only; the attacks that an ensemble combines are in the pool themselves."""
Task = TypeVar("Task")


def sample(
    infos: Sequence[AttackInfo],
    k: int,
    seed: int,
    families: Iterable[str] | None = None,
    norms: Iterable[str] | None = None,
    images: tuple[int, int, int] | None = None,
) -> list[str]:
    """Draw names of ``k`` different attacks, with each family used about equally often.

    Args:
        infos: the attacks to draw from; ensembles are never drawn.
        k: how many attacks to draw.
        seed: seed of the draw.
        families, norms: draw only attacks of these.
        images: (C, H, W) of the images that the attacks must support.

    Raises:
        InputError: ``k`` is below 1 or exceeds the number of attacks, or a family or norm is unknown.
    """
    groups = _grouped(infos, families, norms, images)
    available = sum(map(len, groups.values()))
    if not 1 <= k <= available:
        raise InputError(f"cannot sample {k} attacks: choose between 1 and {available}")
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
    """Split the families into seen and unseen, both sorted; unseen families are never trained against.

    Args:
        infos, families, norms, images: as for :func:`sample`.
        seed: seed of the draw.
        unseen: number of families to hold out; at least one must remain seen.

    Raises:
        InputError: there are not enough families.
    """
    known = sorted(_grouped(infos, families, norms, images))
    if not 1 <= unseen < len(known):
        raise InputError(
            f"cannot hold {unseen} families out: there are {len(known)} ({', '.join(known) or 'none'}), and "
            "at least one must remain"
        )
    held = random.Random(f"families {seed}").sample(known, unseen)
    return [family for family in known if family not in held], sorted(held)


def meta_tasks(attacks: Sequence[Task], n: int, seed: int) -> list[tuple[list[Task], Task]]:
    """Draw ``n`` meta-learning tasks, each a list of attacks to meta-train with and one to meta-test with.

    Each attack is the meta-test attack equally often, as far as ``n`` allows; ``seed`` decides the order.
    The meta-test attack is not among the meta-training ones (as in arXiv:2404.03340).

    Raises:
        InputError: there are fewer than two attacks, or ``n`` is below 1.
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
    """Names of the attacks that may be drawn, grouped by family."""
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


RANGE = ".."
"""Separates the first and the last value of a knob that a curriculum changes."""
MOST_STAGES = 1000


class Binder(Protocol):
    """Looks up attacks by name, as :class:`attacks_pool.Pool` does."""

    def info(self, name: str) -> AttackInfo:
        """Return the metadata of an attack."""
        ...

    def bind(
        self,
        name: str,
        knobs: Mapping[str, Any],
        *,
        budget: str | None = None,
        training: Mapping[str, Value] | None = None,
    ) -> Attack:
        """Return an attack with fixed knobs."""
        ...


def from_lists(
    pool: Binder,
    name: str,
    knobs: Mapping[str, Value | Sequence[Value]],
    budget: str | None,
    training: Mapping[str, Value] | None,
) -> list[Attack]:
    """Return one attack per stage: stage i takes the i-th value of every list in ``knobs``.

    Raises:
        InputError: there is no list, the lists differ in length, or two stages have the same strength.
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
    pool: Binder,
    name: str,
    knobs: Mapping[str, Value],
    budget: str | None,
    training: Mapping[str, Value] | None,
) -> list[Attack]:
    """Return the attack at ``stages`` strengths; knobs written as ``FROM..TO`` are interpolated linearly.

    Either end may be a fraction (``2/255..8/255``). The ends are exact; values between them are rounded to
    ten digits, or to whole numbers for integer knobs.

    Raises:
        InputError: no knob has a range, ``stages`` is missing or out of range, or an end is not a number.
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
    pool: Binder,
    name: str,
    knobs: Mapping[str, Any],
    moved: Mapping[str, Value],
    budget: str | None,
    training: Mapping[str, Value] | None,
) -> Attack:
    """One stage of a curriculum; training uses the same strength unless ``training`` overrides it."""
    own = {knob: value for knob, value in moved.items() if knob != "eps"}
    return pool.bind(name, knobs, budget=budget, training={**own, **(training or {})})
