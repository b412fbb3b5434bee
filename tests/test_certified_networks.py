"""Certificates of published networks prove what can be proved, and nothing that an attack breaks."""

from __future__ import annotations

import pytest
import torch
from published import folder, network, points

from advbench.data import Split, load_dataset
from advbench.evaluation.certificates.certified import certify_points
from attacks_pool import pool

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "count", "least"), [("mnist-a-adv", 16, 0), ("cifar-a-adv", 24, 8), ("cifar-a-mix", 24, 5)]
)
def test_no_attack_breaks_a_certified_point(name: str, count: int, least: int) -> None:
    """At the eps of the bracket, where it is hardest, and at half of it, where more is proved."""
    model, eps = network(name)
    x, y = (part[:count] for part in points(name))
    counts = []
    for radius in (eps, eps / 2):
        found = certify_points(model, Split(x, y), norm="linf", eps=radius, method="crown")
        proved = torch.tensor(found.proved)
        counts.append(int(proved.sum()))
        attack = pool.get("pgd", eps=radius, steps=30, restarts=3)
        generator = torch.Generator().manual_seed(0)
        crafted = attack(model, x[proved], y[proved], generator=generator) if proved.any() else x[:0]
        assert (model(crafted).argmax(1) == y[proved]).all()
    assert least <= counts[0] <= counts[1]
    assert counts[1] > least


def test_crown_proves_what_the_authors_bound_proves() -> None:
    """94.2 % of all test points, by the authors' count; here 60 of them, of which 54 are proved."""
    model, eps = network("wong-kolter")
    data = load_dataset("mnist", str(folder())).test.first(60)
    found = certify_points(model, data, norm="linf", eps=eps, method="crown")
    assert found.counts()["certified"] >= 54
