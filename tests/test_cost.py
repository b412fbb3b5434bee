"""What an attack says it costs is what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from attacks_pool import count_passes, pool
from attacks_pool.attacks import autoattack, screen

POINTS = 4
CLASSES = 5
SHORT: dict[str, Any] = {"steps": 6, "binary_search_steps": 2, "restarts": 2, "eot_steps": 2}


@pytest.fixture(autouse=True)
def _short_ensembles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "PUBLISHED", autoattack.Budget(steps=2, queries=6, targets=2, restarts=2))
    monkeypatch.setattr(screen, "BUDGET", {**screen.BUDGET, "steps": 2, "targets": 2, "queries": 6})


@pytest.mark.parametrize("name", pool.names())
def test_declared_passes_are_never_exceeded_and_no_empty_boast(
    name: str, network: Callable[..., nn.Sequential]
) -> None:
    """Counted without early stop: at most the declared passes, and, of the sum, at least half of them."""
    info = pool.info(name)
    channels = 1 if info.channels is None else info.channels[0]
    knobs = {knob: value for knob, value in SHORT.items() if knob in info.knobs}
    attack = pool.get(name, budget="digits", **knobs)
    declared = info.passes(attack.knobs, CLASSES)
    assert declared is not None, "every attack of ours says what it costs"
    model = network(channels=channels, classes=CLASSES).eval()
    x = torch.rand(POINTS, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    with count_passes(model) as counted:
        attack(model, x, y, generator=torch.Generator().manual_seed(0))
    assert counted.forwards <= POINTS * declared[0]
    assert counted.backwards <= POINTS * declared[1]
    if name.startswith("deepfool"):  # it ends where it first crosses the boundary
        return
    assert 2 * (counted.forwards + counted.backwards) >= POINTS * sum(declared)
