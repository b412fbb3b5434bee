"""Minimal-norm attacks: closed forms on linear classifiers, and peers on a trained network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import linprog
from targets import Target, linear
from torch import Tensor, nn

from attacks_pool import pool
from attacks_pool.attacks.ead import shrink
from attacks_pool.attacks.fmn import into_ball
from attacks_pool.fast.copy import SearchModel
from attacks_pool.search.boundary import Smallest, length, rivals
from attacks_pool.search.fab import step_to_hyperplane
from attacks_pool.verifier import distance

NEAR: dict[str, float] = {
    "cw": 1.05,
    "deepfool": 1.03,
    "deepfool-linf": 1.04,
    "ddn": 1.01,
    "fmn": 1.02,
    "fmn-l2": 1.02,
    "fmn-l1": 1.05,
    "ead": 1.15,
    **dict.fromkeys(["fab", "fab-l2", "fab-l1", "fab-t", "fab-t-l2", "fab-t-l1"], 1.01),
}
"""How many times the smallest norm each attack may need on a linear classifier."""
LIKELIEST = ("cw", "ddn", "fmn", "fmn-l2", "ead")
"""Those that are drawn to the likeliest other class, which among several need not be the nearest."""
NAMES = [*NEAR, "fmn-l0"]


def craft(name: str, model: nn.Module, x: Tensor, y: Tensor, eps: float = 100.0, **given: Any) -> Tensor:
    early_stop = given.pop("early_stop", False)
    eps = min(eps, 1.0) if pool.info(name).norm == "linf" else eps
    draws = torch.Generator().manual_seed(0)
    return pool.get(name, eps=eps, **given)(model, x, y, generator=draws, early_stop=early_stop)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", NEAR)
def test_linear_classifier_gives_the_closed_form(name: str, classes: int) -> None:
    case = linear(classes, (1, 5, 5), points=8, lead=1.0)
    norm = str(pool.info(name).norm)
    x_adv = craft(name, case.model, case.x, case.y)
    assert (case.model(x_adv).argmax(1) != case.y).all()
    ratio = distance(x_adv, case.x, norm) / case.distances(norm)
    assert ratio.min() > 1 - 1e-3
    assert ratio.max() < (NEAR[name] if classes == 2 or name not in LIKELIEST else 1.3)


def test_cw_finds_near_boundaries_of_large_images() -> None:
    """A step of Adam is longer here than the way to the boundary; it must shrink to end up close to it."""
    case = linear(2, (3, 16, 16), points=4)
    normal = (case.weight[1 - case.y] - case.weight[case.y]).view_as(case.x)
    normal = normal / normal.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x = case.x + (case.distances("l2").float() - 0.05).view(-1, 1, 1, 1) * normal
    x_adv = craft("cw", case.model, x, case.y, steps=200, binary_search_steps=9)
    assert norms(case.model, x, case.y, x_adv, "l2").median() <= 1.05 * 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_l0_counts_the_pixels_that_a_linear_classifier_needs(channels: int) -> None:
    """From grey every value moves by a half, so a pixel is worth half of its summed weights."""
    case = linear(2, (channels, 4, 4), points=8, spread=0.0, lead=3.0)
    model, x, y = case.model, case.x, case.y
    normal = case.weight[1 - y] - case.weight[y]
    worth = normal.abs().view(len(x), channels, -1).sum(1) / 2
    needed = 1 + (worth.sort(1, descending=True).values.cumsum(1) <= 3.0).sum(1)
    found = craft("fmn-l0", model, x, y)
    assert (model(found).argmax(1) != y).all()
    assert (distance(found, x, "l0") >= needed).all()
    assert (distance(found, x, "l0") <= needed + 1).all()


# Geometry.


def planes(rows: int = 40, pixels: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the box, some pixels on its sides; normals with zeros; gains of either sign in reach."""
    draws = torch.Generator().manual_seed(3)
    x = (1.6 * torch.rand(rows, pixels, generator=draws) - 0.3).clamp(0, 1)
    w = torch.randn(rows, pixels, generator=draws) * (torch.rand(rows, pixels, generator=draws) > 0.2)
    share = 1.8 * torch.rand(rows, generator=draws) - 0.9
    reach = (w.abs() * torch.where(w * share[:, None] > 0, 1 - x, x)).sum(1)
    return x, w, share * reach


def by_linear_programme(x: Tensor, w: Tensor, gain: Tensor, norm: str) -> list[float]:
    """The smallest norms, of d = p − q with p, q ≥ 0 (l1) or with |d| ≤ t (linf)."""
    found = []
    for point, normal, wanted in zip(x.double(), w.double(), gain.double(), strict=True):
        n, up, down = len(point), (1 - point).tolist(), point.tolist()
        if norm == "l1":
            equal = torch.cat([normal, -normal])[None].numpy()
            bounds = [(0, high) for high in up + down]
            answer = linprog([1.0] * (2 * n), A_eq=equal, b_eq=[float(wanted)], bounds=bounds)
        else:
            eye, ones = torch.eye(n, dtype=torch.double), torch.ones(n, 1, dtype=torch.double)
            below = torch.cat([torch.cat([eye, -ones], 1), torch.cat([-eye, -ones], 1)]).numpy()
            equal = torch.cat([normal, torch.zeros(1, dtype=torch.double)])[None].numpy()
            bounds = [(-low, high) for low, high in zip(down, up, strict=True)] + [(0, None)]
            cost = [0.0] * n + [1.0]
            answer = linprog(
                cost, A_ub=below, b_ub=[0.0] * 2 * n, A_eq=equal, b_eq=[float(wanted)], bounds=bounds
            )
        found.append(answer.fun)
    return found


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_step_to_hyperplane_is_the_shortest(norm: str) -> None:
    x, w, gain = planes()
    d = step_to_hyperplane(x, w, gain, norm)
    assert torch.allclose((w * d).sum(1), gain, atol=1e-5)
    assert length(d, norm).tolist() == pytest.approx(by_linear_programme(x, w, gain, norm), abs=1e-5)


def test_step_to_hyperplane_in_l2_is_a_clipped_multiple_of_the_normal() -> None:
    """Which is what the conditions of optimality ask."""
    x, w, gain = planes()
    d = step_to_hyperplane(x, w, gain, "l2")
    assert torch.allclose((w * d).sum(1), gain, atol=1e-5)
    inside = (x + d > 1e-6) & (x + d < 1 - 1e-6) & (w != 0)
    multiple = torch.where(inside, d / w, torch.nan).nanmedian(1).values
    some = ~multiple.isnan()
    assert some.sum() > 20
    clipped = (x + multiple[:, None] * w).clamp(0, 1) - x
    assert torch.allclose(d[some], clipped[some], atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_step_to_hyperplane_out_of_reach_goes_to_the_corner(norm: str) -> None:
    x, w, gain = planes()
    d = step_to_hyperplane(x, w, 1e6 * gain.sign(), norm)
    corner = torch.where(w * gain.sign()[:, None] > 0, 1.0, 0.0)
    assert torch.allclose(torch.where(w != 0, x + d, corner), corner, atol=1e-6)
    assert torch.equal(step_to_hyperplane(x, torch.zeros_like(w), gain, norm), torch.zeros_like(x))
    assert torch.equal(step_to_hyperplane(x, w, torch.zeros_like(gain), norm).abs(), torch.zeros_like(x))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_into_ball(norm: str) -> None:
    delta = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    radius = torch.tensor([1.0, 2.0, 3.0, 0.5, 100.0, 48.0]).floor().clamp_min(1)
    found = into_ball(delta, radius, norm)
    assert (length(found, norm) <= radius * (1 + 1e-5)).all()
    assert torch.allclose(found[4], delta[4])
    # Of the points of the ball none is nearer: not the scaled one, nor one a little along a coordinate.
    if norm in ("l1", "l2"):
        scaled = delta * (radius / length(delta, norm)).clamp_max(1).view(-1, 1, 1, 1)
        assert (length(found - delta, "l2") <= length(scaled - delta, "l2") + 1e-5).all()


def test_shrink_moves_towards_the_clean_point() -> None:
    x, point = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.505, 0.7, 0.2, 1.4])
    assert torch.allclose(shrink(point, x, 0.01), torch.tensor([0.5, 0.69, 0.21, 1.0]))


def test_rivals_are_the_likeliest_other_classes() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [torch.nan, 1.0, 2.0, 3.0]])
    assert rivals(logits, torch.tensor([0, 3]), 2).tolist()[0] == [2, 1]
    assert sorted(rivals(logits, torch.tensor([0, 3]), 9).tolist()[1]) == [0, 1, 2]


def test_record_believes_the_exact_model_and_keeps_the_smallest() -> None:
    class Bright(nn.Module):
        def __init__(self, bound: float) -> None:
            super().__init__()
            self.bound = bound

        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1) - self.bound
            return torch.stack([-total, total], 1)

    x, y, points = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    model, found = SearchModel(Bright(0.5), Bright(0.3)), Smallest(x, "l2")
    for value, success, best in [(0.4, False, 0.4), (0.9, True, 0.9), (0.6, True, 0.6), (0.7, True, 0.6)]:
        tried = x + value
        assert found.record(model, points, tried, y, model(tried)).item() is success
        assert found.best.item() == pytest.approx(best)


# A trained network, and peers on it.


def norms(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """(N,) norms, infinite where the attack failed."""
    return torch.where(model(x_adv).argmax(1) != y, distance(x_adv, x, norm), torch.inf)


EAD = {"binary_search_steps": 5, "initial_const": 1.0, "decision_rule": "L1", "abort_early": False}
CW = {"steps": 100, "binary_search_steps": 6}
FOOLBOX: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "deepfool": ("L2DeepFoolAttack", {"steps": 50}, [{}]),
    "deepfool-linf": ("LinfDeepFoolAttack", {"steps": 50}, [{}]),
    "ddn": ("DDNAttack", {"steps": 50}, [{}]),
    "ead": ("EADAttack", {"steps": 50, "binary_search_steps": 5}, [EAD]),
    "fmn": ("LInfFMNAttack", {"steps": 50}, [{}]),
    "fmn-l2": ("L2FMNAttack", {"steps": 50}, [{}]),
    "fmn-l1": ("L1FMNAttack", {"steps": 50}, [{}]),
    "fmn-l0": ("L0FMNAttack", {"steps": 50}, [{}]),
    # At its own defaults, and at the best that was found for it.
    "cw": ("L2CarliniWagnerAttack", CW, [CW, {**CW, "stepsize": 0.1, "initial_const": 1.0}]),
}
"""Each attack's peer, our knobs, and the peer's values, of which the best counts."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FOOLBOX)
def test_no_weaker_than_foolbox(name: str, plain_digits: Target) -> None:
    foolbox = pytest.importorskip("foolbox")
    peer, knobs, values = FOOLBOX[name]
    model, x, y = plain_digits.first(40)
    norm = str(pool.info(name).norm)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = []
    for given in values:
        search = getattr(foolbox.attacks, peer)(**(given if "DeepFool" in peer else {"steps": 50, **given}))
        found = search.run(wrapped, x, foolbox.criteria.Misclassification(y))
        theirs.append(norms(model, x, y, found, norm).median())
    ours = norms(model, x, y, craft(name, model, x, y, **knobs), norm)
    assert not ours.isinf().any()
    assert ours.median() <= (1.1 if name == "cw" else 1.02) * min(theirs)


EPS = {"linf": 0.15, "l2": 0.8, "l1": 1.7}


@pytest.mark.quick(r"fab-l2|l2-fab")
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["fab", "fab-t"])
def test_no_weaker_than_pyautoattack(name: str, norm: str, plain_digits: Target) -> None:
    peer = pytest.importorskip("pyautoattack.fab_pt")
    model, x, y = plain_digits.first(40)
    steps, targets, full = 15, 4, name if norm == "linf" else f"{name}-{norm}"
    given = {"steps": steps} | ({"targets": targets} if name == "fab-t" else {})
    search = peer.FABAttack_PT(
        model,
        norm=norm.capitalize(),
        n_iter=steps,
        eps=EPS[norm],
        targeted=name == "fab-t",
        n_target_classes=targets,
        device="cpu",
    )
    with torch.random.fork_rng():
        theirs = norms(model, x, y, search.perturb(x, y), norm)
    quick = norms(model, x, y, craft(full, model, x, y, EPS[norm], early_stop=True, **given), norm)
    ours = norms(model, x, y, craft(full, model, x, y, EPS[norm], **given), norm)
    assert 2 < (theirs <= EPS[norm]).sum() < 38
    assert (ours <= EPS[norm]).sum() >= (theirs <= EPS[norm]).sum()
    assert torch.equal(quick <= EPS[norm], ours <= EPS[norm])
    both = (ours <= EPS[norm]) & (theirs <= EPS[norm])
    assert ours[both].median() <= 1.02 * theirs[both].median()


@pytest.mark.parametrize("name", ["fab", "fab-t-l2"])
def test_further_starts_find_smaller_perturbations(name: str, robust_digits: Target) -> None:
    model, x, y = robust_digits.first(40)
    norm, given = str(pool.info(name).norm), {"steps": 4, "eps": EPS[str(pool.info(name).norm)]}
    given |= {"targets": 2} if name == "fab-t-l2" else {}
    once = norms(model, x, y, craft(name, model, x, y, **given), norm)
    thrice = norms(model, x, y, craft(name, model, x, y, restarts=3, **given), norm)
    assert (thrice <= once).all()
    assert (thrice < once).any()


@pytest.mark.parametrize("name", NAMES)
def test_point_that_is_wrong_already_needs_nothing(name: str, plain_digits: Target) -> None:
    model, x, y = plain_digits.first(40)
    x, y = x[:4], torch.cat([y[:2], (y[2:4] + 1) % 10])
    found = craft(name, model, x, y, steps=5)
    assert torch.equal(found[2:], x[2:])
    assert not torch.equal(found[:2], x[:2])
