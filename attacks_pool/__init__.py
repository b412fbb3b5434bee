"""Adversarial attacks as stateless callables with fixed settings: registry, engine, verifier, sequences.

>>> from attacks_pool import pool
>>> attack = pool.get("pgd", eps=0.2)
>>> x_adv = attack(model, x, y)  # doctest: +SKIP

Importing this package does not load torch; torch is loaded when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attacks_pool.errors import InputError

if TYPE_CHECKING:
    from attacks_pool.attack import Attack
    from attacks_pool.calling.guard import Passes, count_passes
    from attacks_pool.metadata import BUDGETS, FAMILIES, AttackInfo, Knob
    from attacks_pool.registry import Pool, pool, register, sample_sequence
    from attacks_pool.verifier import ModelState, Verdict, verify

__all__ = [
    "BUDGETS",
    "FAMILIES",
    "Attack",
    "AttackInfo",
    "InputError",
    "Knob",
    "ModelState",
    "Passes",
    "Pool",
    "Verdict",
    "count_passes",
    "pool",
    "register",
    "sample_sequence",
    "verify",
]

_HOMES = {
    "attack": ("Attack",),
    "calling.guard": ("Passes", "count_passes"),
    "metadata": ("BUDGETS", "FAMILIES", "AttackInfo", "Knob"),
    "registry": ("Pool", "pool", "register", "sample_sequence"),
    "verifier": ("ModelState", "Verdict", "verify"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"attacks_pool.{home}"), name)
    raise AttributeError(f"module 'attacks_pool' has no attribute {name!r}")
