"""The sample of a verification: which stages, attacks and blocks of test points it measures."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from advbench.evaluation.shards import Shard, blocks
from advbench.verify.subject import Subject
from attacks_pool import Attack, InputError
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.errors import unknown
from attacks_pool.sequences import parse_attacks

ALL = "all"
POINTS = 500
"""The default test points of each attack on each stage: all of the digits, one block of MNIST."""


@dataclass(frozen=True)
class Asked:
    """The sample that a user requests.

    Attributes:
        stages: ``all``, ``last`` or numbers: ``0,3``.
        attacks: ``all``, or names or texts of attacks of the record: ``pgd,cw``, ``pgd:eps=0.2``.
        points: test points of each attack on each stage, rounded up to whole blocks.
        seed: chooses the blocks; random by default, so that nobody can predict them.
        device: the device; by default of the kind that the record was made on.
        threads: CPU threads; the record's by default.
    """

    stages: str = ALL
    attacks: str = ALL
    points: int = POINTS
    seed: int | None = None
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Sample:
    """The sample: stages, attacks and, for each pair of them, the numbers of blocks."""

    stages: list[int]
    attacks: list[Attack]
    chosen: dict[tuple[int, str], set[int]]
    points: int
    seed: int

    def wants(self, stage: int, shard: Shard) -> bool:
        """Whether to measure a shard of a stage; clean points, which cost little, are always measured."""
        return shard.attack is None or shard.index in self.chosen.get((stage, shard.text), ())

    def left_out(self, subject: Subject) -> list[str]:
        """The stages and attacks that are not measured at all, in words."""
        stages = [stage.index for stage in subject.record.stages if stage.index not in self.stages]
        texts = [attack.text for attack in subject.every if attack not in self.attacks]
        found = [f"stages {', '.join(map(str, stages))}"] if stages else []
        return found + ([f"attacks {', '.join(texts)}"] if texts else [])

    def tree(self) -> dict[str, Any]:
        """The choice as JSON values."""
        texts = [attack.text for attack in self.attacks]
        return {"stages": self.stages, "attacks": texts, "points": self.points, "seed": self.seed}


def choose(subject: Subject, asked: Asked) -> Sample:
    """The requested sample; blocks are drawn independently for each stage and attack.

    A block is a fixed range of test points that shares its random draws. So a whole block gives exactly the
    same outcomes on the record's machine; a part of one would not.

    Raises:
        InputError: the record lacks a stage or an attack, or points are below 1.
    """
    if asked.points < 1:
        raise InputError(f"points={asked.points} is out of range: it must be at least 1")
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    stages, attacks = _stages(subject, asked.stages), _attacks(subject, asked.attacks)
    shape = subject.test.shape
    chosen = {
        (stage, attack.text): _blocks(shape, limit, asked.points, ("verify", seed, stage, attack.text))
        for stage in stages
        for attack, limit in subject.measured
        if attack in attacks
    }
    return Sample(stages, attacks, chosen, asked.points, seed)


def _blocks(shape: Sequence[int], limit: int, points: int, key: tuple[Any, ...]) -> set[int]:
    sizes = [block.stop - block.start for block in blocks(shape, limit)]
    found: set[int] = set()
    total = 0
    for number in torch.randperm(len(sizes), generator=keyed_generator(*key)).tolist():
        if total >= points:
            break
        found.add(number)
        total += sizes[number]
    return found


def _stages(subject: Subject, text: str) -> list[int]:
    known = [stage.index for stage in subject.record.stages]
    if text == ALL:
        return known
    if text == "last":
        return known[-1:]
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) not in known:
            raise InputError(
                f"--stages {text!r}: run {subject.record.id} has stages {', '.join(map(str, known))}; "
                "give some of them, last or all"
            )
    return [index for index in known if str(index) in {str(int(part)) for part in parts}]


def _attacks(subject: Subject, text: str) -> list[Attack]:
    if text == ALL:
        return subject.every
    found: list[Attack] = []
    for name, knobs in parse_attacks(text):
        # Compare canonical texts, so that 8/255 equals its decimal.
        fitting = [attack for attack in subject.every if attack.name == name and _has(attack, knobs)]
        named = [attack.text for attack in subject.every if attack.name == name]
        if not named:
            raise unknown("attack of the run", name, {attack.name for attack in subject.every})
        if not fitting:
            raise InputError(f"--attacks {text!r}: the run has {' and '.join(named)}")
        found += fitting
    return [attack for attack in subject.every if attack in found]


def _has(attack: Attack, knobs: dict[str, Any]) -> bool:
    declared = attack.info.all_knobs()
    for knob, value in knobs.items():
        if knob not in declared:
            raise unknown(f"knob of {attack.name}", knob, declared)
        if declared[knob].parse(f"{attack.name}.{knob}", value) != attack.knobs[knob]:
            return False
    return True
