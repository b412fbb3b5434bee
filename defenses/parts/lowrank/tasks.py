"""What an adapter is for: clean images, an attack, or a family of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from attacks_pool.attack import Attack


@dataclass(frozen=True)
class Task:
    """A task by its text (of an attack, the canonical one of its training form), name, family and norm."""

    text: str
    name: str
    family: str
    norm: str | None = None
    eps: float = 0.0

    @classmethod
    def of(cls, attack: Attack) -> Self:
        """The task of an attack: the same for its training form, its evaluation form and at a smaller eps."""
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
    """The place of the attack's own task, else of the nearest of its family, else of ``CLEAN``.

    Nearest is the same attack before another, then the same norm, then the least distance of eps. None where
    there are no tasks yet.
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
