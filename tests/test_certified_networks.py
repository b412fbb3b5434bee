"""Certificates of published networks prove what can be proved, and nothing that an attack breaks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from advbench.data import Split, load_dataset
from advbench.evaluation.certificates.certified import certify_points
from advbench.models.normalize import Normalize
from attacks_pool import pool

pytestmark = pytest.mark.slow


def folder() -> Path:
    """Where the networks are, or a skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get("ADVBENCH_DATA", beside))
    if not (found / "published" / "nets.json").is_file():
        pytest.skip("no published/nets.json in $ADVBENCH_DATA or in ../shared/data beside the checkout")
    return found


def layer(given: Any) -> nn.Module:
    if given in ("relu", "flatten"):
        return nn.ReLU() if given == "relu" else nn.Flatten()
    ((kind, sizes),) = given.items()
    if kind == "normalize":
        return Normalize(sizes["mean"], sizes["std"])
    return nn.Conv2d(*sizes) if kind == "conv2d" else nn.Linear(*sizes)


def network(name: str) -> tuple[nn.Module, float]:
    """The network and its eps."""
    published = folder() / "published"
    entry = json.loads((published / "nets.json").read_text("utf-8"))[name]
    model = nn.Sequential(*map(layer, entry["layers"]))
    missing, unexpected = model.load_state_dict(load_file(published / f"{name}.safetensors"), strict=False)
    assert not unexpected
    assert set(missing) <= {"0.mean", "0.std"}
    return model.eval(), entry["eps"]


@pytest.mark.parametrize(
    ("name", "points", "least"), [("mnist-a-adv", 16, 0), ("cifar-a-adv", 24, 8), ("cifar-a-mix", 24, 5)]
)
def test_no_attack_breaks_a_certified_point(name: str, points: int, least: int) -> None:
    """At the eps of the bracket, where it is hardest, and at half of it, where more is proved."""
    model, eps = network(name)
    stored = load_file(folder() / "published" / f"points-{name.partition('-')[0]}.safetensors")
    x, y = stored["x"][:points], stored["y"][:points]
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
