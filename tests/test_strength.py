"""Our budgeted attacks against their peers at equal budgets, and against optima known in closed form."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from targets import Craft, Target, linear, ours, trained_target
from torch import Tensor, nn

from advbench.data import DataSet
from attacks_pool import ModelState, pool
from attacks_pool.calling.guard import untouched
from attacks_pool.calling.randomness import isolated_randomness, keyed_generator

EPS = {"linf": 0.2, "l2": 0.6, "l1": 2.0}
POINTS = 200
ONE_POINT = 0.01
"""How much more robust accuracy we may leave than a peer.

Both sides meet the same points, so sampling error cancels; what is left is where each random start falls.
"""
ALLOWED = {"apgd-dlr-l1": 0.05}
"""Where more than a point is left to the peer; AutoAttack has no such part."""
SEEDS = {"tpgd": 8}
"""The tiny noise at the start decides where TPGD goes: a seed is worth a point, so there are more of them."""


def torchattacks(attack: str, **given: Any) -> Craft:
    def craft(model: nn.Module, x: Tensor, y: Tensor, _seed: int) -> Tensor:
        peer = pytest.importorskip("torchattacks", reason="torchattacks is the peer")
        found: Tensor = getattr(peer, attack)(model, eps=EPS["linf"], **given)(x, y)
        return found

    return craft


def foolbox(attack: str, eps: float, **given: Any) -> Craft:
    def craft(model: nn.Module, x: Tensor, y: Tensor, _seed: int) -> Tensor:
        peer = pytest.importorskip("foolbox", reason="foolbox is the peer")
        wrapped = peer.PyTorchModel(model, bounds=(0, 1), device="cpu")
        found: Tensor = getattr(peer.attacks, attack)(**given)(wrapped, x, y, epsilons=eps)[1]
        return found

    return craft


def autoattack(kind: str, norm: str, steps: int) -> Craft:
    """A part of AutoAttack; Auto-PGD in l1 with the shrinking ball that AutoAttack gives it."""

    def craft(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        given = {"norm": "Linf" if norm == "linf" else norm.upper(), "eps": EPS[norm], "seed": seed}
        given["device"] = "cpu"
        if kind == "square":
            peer = pytest.importorskip("pyautoattack.square", reason="pyautoattack is the peer of square")
            found: Tensor = peer.SquareAttack(model, n_queries=steps, **given).perturb(x, y)
            return found
        peer = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is the peer of apgd")
        given |= {"n_iter": steps, "use_largereps": norm == "l1"}
        if kind == "targeted":
            found = peer.APGDAttack_targeted(model, n_target_classes=9, **given).perturb(x, y)
        else:
            found = peer.APGDAttack(model, loss=kind, **given).perturb(x, y)
        return found

    return craft


PEERS: list[tuple[str, dict[str, Any], Craft]] = [
    ("pgd", {"steps": 10}, torchattacks("PGD", alpha=0.05, steps=10)),
    ("pgd", {"steps": 40}, torchattacks("PGD", alpha=0.0125, steps=40)),
    ("rfgsm", {}, torchattacks("RFGSM", alpha=0.1, steps=1)),
    ("ffgsm", {}, torchattacks("FFGSM", alpha=0.25)),
    ("nim", {"steps": 10}, torchattacks("NIFGSM", alpha=0.04, steps=10)),
    ("dim", {"steps": 10}, torchattacks("DIFGSM", alpha=0.04, steps=10, decay=1.0)),
    ("vmi", {"steps": 10}, torchattacks("VMIFGSM", alpha=0.04, steps=10)),
    ("tpgd", {"steps": 10}, torchattacks("TPGD", alpha=0.05, steps=10)),
    ("eotpgd", {"steps": 10, "eot_steps": 2}, torchattacks("EOTPGD", alpha=0.05, steps=10, eot_iter=2)),
    ("pgd-l1", {"steps": 20}, foolbox("SparseL1DescentAttack", EPS["l1"], steps=20)),
    ("apgd", {"steps": 10}, autoattack("ce", "linf", 10)),
    ("apgd", {"steps": 50}, autoattack("ce", "linf", 50)),
    *(
        (name if norm == "linf" else f"{name}-{norm}", {"steps": steps}, autoattack(kind, norm, steps))
        for name, kind, steps in (
            ("apgd-ce", "ce", 20),
            ("apgd-dlr", "dlr", 20),
            ("apgd-t", "targeted", 8),
            ("square", "square", 200),
        )
        for norm in EPS
        if (name, norm) != ("apgd-t", "l1")
    ),
    ("apgd-t-l1", {"steps": 20}, autoattack("targeted", "l1", 20)),
]


@pytest.mark.quick(r"(pgd-10|apgd-10|square-200|apgd-ce-l2-20|pgd-l1-20)")
@pytest.mark.filterwarnings("ignore:there are")
@pytest.mark.parametrize(
    ("name", "knobs", "peer"),
    [pytest.param(*row, id="-".join([row[0], *map(str, row[1].values())])) for row in PEERS],
)
def test_attack_is_as_strong_as_its_peer(
    name: str, knobs: dict[str, Any], peer: Craft, robust_digits: Target
) -> None:
    """At most one point more survives, at the same eps, steps and step size, averaged over the seeds."""
    norm, seeds = str(pool.info(name).norm), SEEDS.get(name, 3)
    target = robust_digits.first(POINTS)
    theirs = target.robust(peer, norm, EPS[norm], seeds)
    # The budgets are such that the comparison can fail.
    assert 0 < theirs < 1
    mine = target.robust(ours(name, EPS[norm], **knobs), norm, EPS[norm], seeds)
    assert mine <= theirs + ALLOWED.get(name, ONE_POINT)


@pytest.mark.slow
def test_tim_is_as_strong_as_its_peer(digits: DataSet) -> None:
    """Whose kernels take images of three channels alone."""
    target = trained_target(digits, robust=False, channels=3)
    peer = torchattacks("TIFGSM", alpha=0.04, steps=10, decay=1.0, len_kernel=3, diversity_prob=0.0)
    theirs = target.robust(peer, "linf", EPS["linf"])
    assert target.robust(ours("tim", EPS["linf"], steps=10), "linf", EPS["linf"]) <= theirs + ONE_POINT


def test_a_weak_attack_is_told_apart(robust_digits: Target) -> None:
    """One step, or noise, lags behind the peer by more than the tolerance."""
    peer = robust_digits.robust(torchattacks("PGD", alpha=0.025, steps=20), "linf", EPS["linf"])
    for name in ("fgsm", "gaussian-noise"):
        assert robust_digits.robust(ours(name, EPS["linf"]), "linf", EPS["linf"]) > peer + ONE_POINT


@pytest.mark.quick(r"mt-pgd-pgd-0\.2")
@pytest.mark.parametrize(("name", "plain", "eps"), [("mt-pgd", "pgd", 0.2), ("mt-pgd-l1", "pgd-l1", 2.0)])
def test_many_targets_beat_one_search(name: str, plain: str, eps: float, robust_digits: Target) -> None:
    norm, target = str(pool.info(name).norm), robust_digits.first(POINTS)
    mine, simple = (target.robust(ours(each, eps, steps=10), norm, eps, 2) for each in (name, plain))
    assert mine <= simple


@pytest.mark.slow
def test_spsa_is_nearly_as_strong_as_pgd(robust_digits: Target) -> None:
    target, eps = robust_digits.first(60), EPS["linf"]
    left = {
        name: target.robust(ours(name, eps, **knobs), "linf", eps, 1)
        for name, knobs in {"spsa": {"steps": 40}, "pgd": {"steps": 40}, "gaussian-noise": {}}.items()
    }
    assert left["spsa"] <= left["pgd"] + 0.1 < left["gaussian-noise"]


PARTS = {"torchattacks": torchattacks("PGD", alpha=0.1, steps=2), "apgd": autoattack("ce", "linf", 2)}
PARTS["square"] = autoattack("square", "linf", 2)


@pytest.mark.parametrize("peer", PARTS)
def test_side_effects_of_peers_are_contained(peer: str) -> None:
    """Peers re-seed globally and switch frozen batch norm to train mode; no other test may notice."""
    model = nn.Sequential(nn.BatchNorm2d(1).eval(), nn.Flatten(), nn.Linear(64, 10))
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    state, before = ModelState(model), torch.get_rng_state()
    numbers = random.getstate(), np.random.get_state()[1].tolist()
    with isolated_randomness(0, torch.device("cpu")), untouched(model):
        PARTS[peer](model, x, y, 0)
    assert state.changes() == []
    assert torch.equal(torch.get_rng_state(), before)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == numbers


# Linear classifiers, whose optima are known in closed form.


@pytest.mark.parametrize("name", ["fgsm", "bim", "mim", "pgd", "apgd"])
def test_linf_attack_goes_to_the_corner(name: str) -> None:
    """On two linear classes the loss grows fastest towards x + eps · sign(w_other − w_y), its maximum."""
    case = linear(2, (1, 8, 8), lead=3.0)
    direction = (case.weight[1 - case.y] - case.weight[case.y]).view_as(case.x)
    knobs = {"steps": 20} if name == "apgd" else {}
    x_adv = pool.get(name, eps=0.05, **knobs)(case.model, case.x, case.y, generator=keyed_generator(0))
    assert torch.allclose(x_adv, case.x + 0.05 * direction.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_l2_goes_along_the_weights(random_start: bool) -> None:
    """x + eps · w/‖w‖; from a random start the part across w dies out, and with it the loss's shortfall."""
    case = linear(2, (1, 8, 8), lead=3.0)
    direction = (case.weight[1 - case.y] - case.weight[case.y]).view_as(case.x)
    direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    attack = pool.get("pgd-l2", eps=0.25, random_start=random_start)
    delta = attack(case.model, case.x, case.y, generator=keyed_generator(0)) - case.x
    gained = (delta * direction).flatten(1).sum(1)
    assert (gained <= 0.25 * (1 + 1e-5)).all()
    assert (gained >= 0.25 * (0.97 if random_start else 1 - 1e-5)).all()
