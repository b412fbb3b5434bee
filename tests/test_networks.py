"""Target-aware defenses: what the audit compares was measured on one network; what their record says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench import run
from advbench.audit import audit, probe
from advbench.audit.networks import networks
from advbench.audit.stored import audit_run
from advbench.data import DataSet, Split
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.shards import View
from advbench.models.cost import multiply_adds
from advbench.runs.saved import load_run, new_classifier
from advbench.verify import Asked, retrain_run, verify_run
from attacks_pool import Attack, pool
from leaderboards import Audit, json_bytes, write_bytes, write_checksums

ATTACKS = pool.sequence("pgd:steps=20,square:steps=200", budget="digits")


def trained(data: DataSet, attack: Attack | None = None) -> nn.Module:
    """A small network of the digits, plain or hardened by ``attack``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for epoch in range(8):
            for index in torch.randperm(len(data.train.x)).split(128):
                x, y = data.train.x[index], data.train.y[index]
                if attack is not None and epoch > 2:
                    x = attack(model, x, y)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def plain(digits: DataSet) -> nn.Module:
    """What sees clean images, and whatever no expert is for."""
    return trained(digits)


@pytest.fixture(scope="module")
def hardened(digits: DataSet) -> nn.Module:
    """The expert for PGD."""
    return trained(digits, pool.get("pgd", eps=0.2, steps=5))


def aware(plain: nn.Module, expert: nn.Module) -> View:
    """A target-aware defense whose networks are built anew each time; the expert is for PGD."""

    def view(attack: Attack | None) -> nn.Module:
        return copy.deepcopy(expert if attack is not None and attack.name == "pgd" else plain)

    return view


def judged(view: View, data: DataSet, *, probes: bool = True) -> Audit:
    """The audit of a row measured through ``view``."""
    test = Split(data.test.x[:200], data.test.y[:200])
    pairs = [(attack, 200) for attack in ATTACKS]
    row = evaluate(view, test, pairs, stage=1, seed=0)
    return audit([row], pairs, probes=probe(view, test, attacks=ATTACKS, points=100) if probes else None)


class Rounded(nn.Module):
    """Hides the gradients of a network behind rounded pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits: Tensor = self.model((x * 16).round() / 16)
        return logits


def test_networks_that_answer_alike_are_one(plain: nn.Module, hardened: nn.Module, digits: DataSet) -> None:
    """Though each view is a new module; a defense that answers by itself is a single network."""
    attacks = pool.sequence("square,pgd,fgsm,pgd:eps=0.1", budget="digits")
    square, pgd, fgsm, smaller = (attack.text for attack in attacks)
    x = digits.test.x[:8]
    found, labels = networks(aware(plain, hardened), attacks, x)
    assert [network.label for network in found] == [None, pgd]
    assert labels == {square: None, pgd: pgd, fgsm: None, smaller: pgd}
    assert torch.equal(found[1].view(attacks[0])(x), hardened(x))
    assert torch.equal(found[1].view(None)(x), plain(x))
    found, labels = networks(lambda _: plain, attacks, x)
    assert [network.label for network in found] == [None]
    assert set(labels.values()) == {None}


def test_an_honest_one_is_not_blamed_for_having_several_networks(
    plain: nn.Module, hardened: nn.Module, digits: DataSet
) -> None:
    """Square fools the plain network where PGD doesn't fool the hardened one: no sign of masking.

    Were the cells of two networks compared, it would look like one.
    """
    found = judged(aware(plain, hardened), digits)
    assert found.verdict == "ok", found.flags
    assert {cell.network for cell in found.probes} == {None, ATTACKS[0].text}
    ours = [cell for cell in found.probes if cell.attack.startswith("pgd:eps=0.2,loss=ce")]
    pgd = {cell.network: cell.robust for cell in ours}
    assert pgd[None] < 20 < pgd[ATTACKS[0].text]
    unaware = judged(aware(plain, hardened), digits, probes=False)
    assert [flag.code for flag in unaware.flags] == ["black-box-beats-white-box"]


@pytest.mark.slow
def test_a_mask_on_one_network_is_found_there(plain: nn.Module, digits: DataSet) -> None:
    """The other networks are honest, clean images too; the flag names the network."""
    found = judged(aware(plain, Rounded(plain)), digits)
    assert found.verdict == "suspect"
    assert "zero-gradient" in {flag.code for flag in found.flags}
    assert {flag.evidence.get("network") for flag in found.flags} == {ATTACKS[0].text}, found.flags
    assert all(flag.message.endswith(f"(on the network for {ATTACKS[0].text})") for flag in found.flags)


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_run_is_probed_on_its_networks_and_costs_what_a_plain_one_does(
    small_options: dict[str, Any], tmp_path: Path
) -> None:
    """In the record and when it is audited again; merged experts cost what the classifier does."""
    options = {**small_options, "points": 20, "unseen": "square:steps=20"}
    options["set"] = {**options["set"], "batch_size": 256}
    saved = run(defense="mola-grad", runs_dir=tmp_path, **options)
    fgsm, pgd = (entry.text for entry in saved.record.attacks if entry.role == "seen")
    for found in (saved.record.audit, audit_run(saved, points=10)):
        assert {cell.network for cell in found.probes} == {None, fgsm, pgd}
    plain = new_classifier(saved.config, (1, 8, 8), 10).eval()
    assert saved.record.cost.multiply_adds == multiply_adds(plain, saved.test_data[0][:1])


@pytest.mark.usefixtures("short_probes")
@pytest.mark.slow
def test_a_router_is_measured(small_options: dict[str, Any], tmp_path: Path) -> None:
    """What it tells of the attack, what it costs, and the mean weights of each attack, in the record."""
    options = {**small_options, "points": 40, "regime": "joint"}
    saved = run(defense="mola-router", runs_dir=tmp_path, **options)
    record = saved.record
    nmi, overhead = record.metrics["router_nmi"], record.metrics["router_overhead"]
    assert nmi is not None
    assert overhead is not None
    assert 0 <= nmi <= 1 < overhead
    weights = record.stages[-1].spec["router_weights"]
    trained = {entry.training for entry in record.attacks if entry.role == "seen"}
    assert set(weights) == {"clean", *trained}
    for row in weights.values():
        assert len(row) == 3
        assert sum(row) == pytest.approx(1, abs=1e-3)
    report = verify_run(saved, Asked(points=20))
    assert report.faults == []
    assert "metrics that no outcomes give: router_nmi, router_overhead" in report.not_looked_at
    again = retrain_run(saved, keep=tmp_path / "again")
    assert again.faults == []
    assert not any("router" in line for line in again.not_looked_at)
    tree = record.dump()
    tree["metrics"]["router_nmi"] = nmi + 0.1
    write_checksums(saved.path, json_bytes(tree))
    write_bytes(saved.path / "record.json", json_bytes(tree))
    refuted = retrain_run(load_run(saved.path), keep=tmp_path / "again")
    assert refuted.faults == [f"metrics: router_nmi is {nmi + 0.1}, training again gives {nmi}"]
