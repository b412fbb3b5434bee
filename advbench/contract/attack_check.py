"""The contract that every attack keeps, as a list of promises that are tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advbench.config.plugins import import_attack, names_code
from advbench.contract import attack_trial
from advbench.contract.attack_trial import AttackTrial
from advbench.contract.check import Check, try_promises
from advbench.contract.trial import Promise
from attacks_pool import pool
from attacks_pool.metadata import Value

ATTACK_CONTRACT: tuple[Promise[AttackTrial], ...] = (
    Promise("metadata", attack_trial.metadata, ()),
    Promise("images", attack_trial.images, ("metadata",)),
    Promise("bounds", attack_trial.bounds, ("images",)),
    Promise("strength", attack_trial.strength, ("images",)),
    Promise("determinism", attack_trial.determinism, ("images",)),
    Promise("batch independence", attack_trial.independence, ("determinism",)),
    Promise("state", attack_trial.state, ("images",)),
    Promise("cost", attack_trial.cost, ("images",)),
)
"""Every promise, with those that must hold before it is tried."""


def check_attack(
    attack: str,
    *,
    knobs: Mapping[str, Value] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Run the contract on an attack, against a small classifier trained on the spot; it takes seconds.

    ``assert all(check.holds for check in check_attack("my-attack"))`` is a test for your own package.

    Args:
        attack: a registered name, or ``package.module:function``, which is imported.
        knobs: values of its knobs; the others have their defaults.
        progress: called with the name of each promise before it is tried.

    Returns:
        One check a promise, in the order of ``ATTACK_CONTRACT``.

    Raises:
        InputError: no such attack, or knobs that it does not take.
    """
    entry = pool.entry(import_attack(attack) if names_code(attack) else attack)
    trial = AttackTrial(entry, dict(knobs or {}))
    # Wrong knobs are a mistake of the caller's, not a promise that the attack breaks.
    pool.bind(entry.info.name, trial.knobs, budget="digits")
    return try_promises(ATTACK_CONTRACT, trial, entry.function, progress)
