"""What an attack says it costs is what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from attacks_pool import Attack, count_passes, pool
from attacks_pool.attacks import autoattack, screen, strongest

POINTS = 4
CLASSES = 5
SHORT: dict[str, Any] = {"steps": 6, "binary_search_steps": 2, "restarts": 2, "eot_steps": 2}
SHORT |= {"neighbours": 2, "targets": 2}
AT_MOST = ("deepfool", "fab")
"""Attacks that end where they cross the boundary, or skip gradients: their cost is an upper bound."""
LOOKS_TWICE = ("dim", "nim")
"""Attacks whose gradient is taken at another point than the one that early stop looks at."""


@pytest.fixture(autouse=True)
def _short_ensembles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "PUBLISHED", autoattack.Budget(steps=2, queries=6, targets=2, restarts=2))
    monkeypatch.setattr(
        screen, "BUDGET", {**screen.BUDGET, "steps": 2, "short": 2, "targets": 2, "queries": 6}
    )
    brief = strongest.StrongestBudget(
        steps=2, short=2, scout=1, starts=1, rounds=2, targets=2, broad=2, queries=6, averaged=(2, 1, 2)
    )
    monkeypatch.setattr(strongest, "BUDGET", brief)


@pytest.mark.parametrize("name", pool.names())
def test_declared_passes_are_those_spent(name: str, network: Callable[..., nn.Sequential]) -> None:
    """Without early stop, and with it where no point can be fooled; elsewhere early stop spends no more."""
    info = pool.info(name)
    channels = 1 if info.channels is None else info.channels[0]
    knobs = {knob: value for knob, value in SHORT.items() if knob in info.knobs}
    attack = pool.get(name, budget="digits", **knobs)
    model = network(channels=channels, classes=CLASSES).eval()
    x = torch.rand(POINTS, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)

    def spent(attack: Attack, *, early_stop: bool = False) -> tuple[int, int]:
        with count_passes(model) as passes:
            attack(model, x, y, generator=torch.Generator().manual_seed(0), early_stop=early_stop)
        return passes.forwards, passes.backwards

    def declared(attack: Attack) -> tuple[int, int]:
        found = info.passes(attack.knobs, CLASSES)
        assert found is not None, "every attack of ours says what it costs"
        return POINTS * found[0], POINTS * found[1]

    whole = spent(attack)
    if name.startswith(AT_MOST):
        assert all(one <= most for one, most in zip(whole, declared(attack), strict=True))
        assert name.startswith("deepfool") or 2 * sum(whole) >= sum(declared(attack))
    else:
        assert whole == declared(attack)
    if info.kind == "budgeted":
        assert spent(attack.for_training()) == declared(attack.for_training())
    assert sum(spent(attack, early_stop=True)) <= sum(whole)
    if info.norm not in (None, "l0") and not name.startswith((*AT_MOST, *LOOKS_TWICE)):
        hopeless = pool.get(name, eps=1e-5, **knobs)
        assert spent(hopeless, early_stop=True) == declared(hopeless)


@pytest.mark.parametrize(
    ("name", "eps", "most"),
    [
        *(("apgd-t", 0.2, 1 / 3), ("mt-pgd", 0.2, 1 / 2), ("ead", 100.0, 1)),
        *(("fab-t", 0.2, 1 / 2), ("fab-t-l2", 1.0, 1 / 2), ("fab-t-l1", 4.0, 1 / 2)),
    ],
)
def test_early_stop_ends_every_target_of_a_point(
    name: str, eps: float, most: float, network: Callable[..., nn.Sequential]
) -> None:
    model = network(classes=CLASSES).eval()
    x = torch.rand(POINTS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    spent = []
    for early_stop in (False, True):
        with count_passes(model) as passes:
            pool.get(name, eps=eps, steps=6)(model, x, y, early_stop=early_stop)
        spent.append(passes.forwards)
    assert spent[1] < most * spent[0]


def test_training_is_cheaper_where_a_search_renders() -> None:
    for name in ("rotation-translation", "elastic", "hue", "saturation", "brightness", "contrast"):
        attack = pool.get(name, budget="digits")
        usual, trained = (attack.info.passes(one.knobs) for one in (attack, attack.for_training()))
        assert usual is not None
        assert trained is not None
        assert 2 * sum(trained) < sum(usual)
