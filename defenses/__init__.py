"""Adversarial defenses as modules that train themselves: ``from defenses import AIR``.

Every registered class can be imported from here by its class name; a new module needs no entry in any list.
"""

from typing import Any

from defenses.base import Defense, Progress, Stage, TrainingDivergedError
from defenses.metadata import DefenseInfo
from defenses.registry import Registry, register, registry
from defenses.training.plan import TrainPlan
from defenses.training.snapshot import DefenseState, Snapshot

__all__ = [
    "Defense",
    "DefenseInfo",
    "DefenseState",
    "Progress",
    "Registry",
    "Snapshot",
    "Stage",
    "TrainPlan",
    "TrainingDivergedError",
    "register",
    "registry",
]


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and (found := registry.class_named(name)) is not None:
        return found
    raise AttributeError(f"module 'defenses' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *registry.class_names()])
