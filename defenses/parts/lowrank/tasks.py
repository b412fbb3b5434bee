"""The tasks of adapters: clean images, an attack, or a family of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from attacks_pool.attack import Attack


@dataclass(frozen=True)
class Task:
    """A task: its text (for an attack, canonical with training knobs), name, family, norm and eps."""

    text: str
    name: str
    family: str
    norm: str | None = None
    eps: float = 0.0

    @classmethod
    def of(cls, attack: Attack) -> Self:
        """The task of an attack, which is the same for its training form and at a smaller eps."""
        info = attack.info
        return cls(
            attack.training_text, info.name, info.family, info.norm, float(attack.training_knobs["eps"])
        )

    @classmethod
    def of_family(cls, family: str) -> Self:
        """The task of a whole family."""
        return cls(family, family, family)


CLEAN = Task("clean", "clean", "clean")


def nearest(tasks: Sequence[Task], attack: Attack | None) -> int | None:
    """The index of the attack's own task, otherwise of the nearest in its family, otherwise of ``CLEAN``.

    The order of nearness is: the same attack, the same norm, the smallest difference of eps. None if there
    are no tasks yet.
    """
    wanted = CLEAN if attack is None else Task.of(attack)
    if wanted in tasks:
        return tasks.index(wanted)
    family = [place for place, task in enumerate(tasks) if task.family == wanted.family]
    if not family:
        return tasks.index(CLEAN) if CLEAN in tasks else None

    def distance(place: int) -> tuple[bool, bool, float]:
        task = tasks[place]
        return task.name != wanted.name, task.norm != wanted.norm, abs(task.eps - wanted.eps)

    return min(family, key=distance)
