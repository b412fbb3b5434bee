"""How large a perturbation the field grants on each kind of image."""

from __future__ import annotations

from collections.abc import Mapping

from attacks_pool.errors import InputError, unknown

BUDGETS: Mapping[str, Mapping[str, float]] = {
    "digits": {"linf": 0.2, "l2": 1.0, "l1": 4.0, "l0": 4.0},
    "mnist": {"linf": 0.3, "l2": 2.0, "l1": 10.0, "l0": 16.0},
    "fashion-mnist": {"linf": 0.3, "l2": 2.0, "l1": 10.0, "l0": 16.0},
    "cifar10": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0},
    "cifar100": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0},
    "imagenet": {"linf": 4 / 255, "l2": 3.0, "l1": 40.0, "l0": 600.0},
}
"""eps by data set and norm, in units of [0, 1] pixels (l0: pixels); ``imagenet`` is 224-pixel colour."""


def default_eps(attack: str, norm: str | None, budget: str | None) -> float:
    """The table's eps for ``norm``.

    Raises:
        InputError: no budget named, or one that the table does not have.
    """
    if budget is None:
        raise InputError(
            f"attack {attack!r} needs a budget: give eps=… or budget=NAME ({', '.join(BUDGETS)})"
        )
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    return BUDGETS[budget][str(norm)]
