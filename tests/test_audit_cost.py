"""What the audit may cost: which probes take fewer points, and how many passes all of it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.audit import audit_model
from advbench.audit.battery import FEW, FEWEST, again, battery, enough, transfers
from advbench.data import DataSet, Split
from attacks_pool import count_passes, pool, search
from attacks_pool.calling.slopes import usable
from attacks_pool.search.ascent import broken, wrong

ATTACKS = pool.sequence("fgsm,pgd:steps=10,pgd-l2:steps=10", budget="digits")

SMALL = "fgsm:eps=0.02,pgd:steps=10,eps=0.02,pgd-l2:steps=10,eps=0.1"
MOST_PASSES = 1300
"""Sample-passes of an audit for each point, a backward pass counting as two."""


def test_only_probes_that_look_for_large_differences_take_fewer_points() -> None:
    """The rungs beside eps and below it; probes of the run's own eps take more, since they are compared."""
    (twice,) = again(ATTACKS)
    found = {(one.name, one.eps): enough(one, ATTACKS, 200) for one in battery(ATTACKS) if one != twice}
    assert {key for key, points in found.items() if points == FEWEST} == {
        *(("pgd", eps) for eps in (0.1, 0.19, 0.21)),
        *(("pgd-l2", eps) for eps in (0.95, 1.05)),
    }
    assert found["rays", 0.2] == enough(twice, ATTACKS, 200) == FEW
    assert all(found[key] == 200 for key in (("pgd", 0.2), ("pgd", 1.0), ("pgd-l2", 1.0), ("square", 0.2)))
    assert [enough(one, ATTACKS, 200) for one in transfers(ATTACKS)] == [200, 200, 200]
    assert all(enough(one, ATTACKS, 30) == 30 for one in battery(ATTACKS))


def test_an_audit_takes_a_bounded_number_of_passes(digits: DataSet) -> None:
    """Of a linear model most of whose points survive small budgets, so that few searches end early."""
    model, points = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), 200
    with torch.no_grad():
        centres = torch.stack([digits.train.x[digits.train.y == label].mean(0) for label in range(10)])
        model[1].weight.copy_(2 * centres.flatten(1))
        model[1].bias.copy_(-centres.flatten(1).square().sum(1))
    attacks = [(attack, points) for attack in pool.sequence(SMALL)]
    data = Split(digits.test.x[:points], digits.test.y[:points])
    with count_passes(model) as passes:
        found = audit_model(lambda _: model, data, attacks, points=points)
    assert found.verdict == "ok"
    assert passes.forwards + 2 * passes.backwards <= MOST_PASSES * points


def test_a_search_counts_arithmetic_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of a search model asks the same question for bfloat16 and for thin convolutions."""
    counted = []
    monkeypatch.setattr(search, "has_bfloat16", lambda _device: True)
    monkeypatch.setattr(search, "worthwhile", lambda model, _x: counted.append(model) or False)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).eval()
    assert search.search_model(model, torch.rand(2, 1, 8, 8), reduced=True) is model
    assert counted == [model]


@pytest.mark.parametrize("strange", [0.0, float("nan"), float("inf"), float("-inf"), 3e38])
def test_the_short_ways_say_what_the_long_ones_do(strange: float) -> None:
    """Sums and extremes stand for a look at every entry only where they tell."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [strange, strange, 1.0], [strange] * 3])
    y = torch.tensor([2, 2, 0])
    assert torch.equal(wrong(logits, y), (logits.argmax(1) != y) | broken(logits))
    gradient = torch.ones(2, 1, 2, 2)
    gradient[1, 0, 0] = strange
    found = usable(gradient, torch.full_like(gradient, 0.5), lambda near: torch.ones_like(near))
    assert bool(torch.isfinite(found).all())
    assert (found is gradient) == (strange == 0.0)
