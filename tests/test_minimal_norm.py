"""Minimal-norm attacks: closed forms on linear classifiers, and peers on a trained network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.data import DataSet
from attacks_pool import pool
from attacks_pool.attacks.ead import shrink
from attacks_pool.attacks.fmn import into_ball
from attacks_pool.calling.guard import count_passes
from attacks_pool.fast.copy import SearchModel
from attacks_pool.search.boundary import DUAL, Smallest, length, rivals
from attacks_pool.search.fab import step_to_hyperplane
from attacks_pool.verifier import distance

NEAR: dict[str, float] = {
    "deepfool": 1.03,
    "deepfool-linf": 1.04,
    "ddn": 1.01,
    "fmn": 1.02,
    "fmn-l2": 1.02,
    "fmn-l1": 1.05,
    "ead": 1.15,
    "fab": 1.01,
    "fab-l2": 1.01,
    "fab-l1": 1.01,
    "fab-t": 1.01,
    "fab-t-l2": 1.01,
    "fab-t-l1": 1.01,
}
"""How many times the smallest norm each attack may need on a linear classifier."""
LIKELIEST = ("ddn", "fmn", "fmn-l2", "ead")
"""Those that are drawn to the likeliest other class, which among several need not be the nearest."""
NAMES = [*NEAR, "fmn-l0"]


def linear(classes: int, shape: tuple[int, ...], seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear classifier and grey points, labelled as it sees them; most are of class 0."""
    draws = torch.Generator().manual_seed(seed)
    x = 0.5 + 0.05 * torch.randn(8, *shape, generator=draws)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(model[1].weight.shape, generator=draws))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
        model[1].bias[0] += 1.0
        return model, x, model(x).argmax(1)


def smallest_norms(model: nn.Sequential, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """min_k (z_y − z_k) / ‖w_k − w_y‖_dual, exact while the box is not met."""
    weight, logits = model[1].weight.detach(), model(x).detach()
    gaps = logits.gather(1, y[:, None]) - logits
    normals = weight[None] - weight[y][:, None]
    sizes = torch.stack([length(normal, DUAL[norm]) for normal in normals])
    return (gaps / sizes.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf).amin(1)


def craft(name: str, model: nn.Module, x: Tensor, y: Tensor, eps: float = 100.0, **given: Any) -> Tensor:
    early_stop = given.pop("early_stop", False)
    eps = min(eps, 1.0) if pool.info(name).norm == "linf" else eps
    draws = torch.Generator().manual_seed(0)
    return pool.get(name, eps=eps, **given)(model, x, y, generator=draws, early_stop=early_stop)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", NEAR)
def test_linear_classifier_gives_the_closed_form(name: str, classes: int) -> None:
    model, x, y = linear(classes, (1, 5, 5))
    norm = str(pool.info(name).norm)
    x_adv = craft(name, model, x, y)
    assert (model(x_adv).argmax(1) != y).all()
    ratio = distance(x_adv, x, norm) / smallest_norms(model, x, y, norm)
    assert ratio.min() > 1 - 1e-3
    assert ratio.max() < (NEAR[name] if classes == 2 or name not in LIKELIEST else 1.3)


@pytest.mark.parametrize("channels", [1, 3])
def test_l0_counts_the_pixels_that_a_linear_classifier_needs(channels: int) -> None:
    """From grey every value moves by a half, so a pixel is worth half of its summed weights."""
    model, x, y = linear(2, (channels, 4, 4))
    x = torch.full_like(x, 0.5)
    with torch.no_grad():
        model[1].bias[0] += 2.0
    y = model(x).argmax(1)
    normal = (model[1].weight[1 - y] - model[1].weight[y]).detach()
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


@pytest.fixture(scope="module")
def trained(digits: DataSet) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained on noisy digits, and 40 points that it gets right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1)
        )
        model.extend([nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)])
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(6):
            for batch in torch.randperm(len(digits.train.x)).split(64):
                x = digits.train.x[batch] + 0.2 * torch.randn(len(batch), 1, 8, 8)
                optimizer.zero_grad()
                F.cross_entropy(model(x.clamp(0, 1)), digits.train.y[batch]).backward()
                optimizer.step()
    model.eval().requires_grad_(False)
    x, y = digits.test.x[:60], digits.test.y[:60]
    right = model(x).argmax(1) == y
    return model, x[right][:40], y[right][:40]


def norms(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """(N,) norms, infinite where the attack failed."""
    return torch.where(model(x_adv).argmax(1) != y, distance(x_adv, x, norm), torch.inf)


FOOLBOX: dict[str, Callable[[Any], Any]] = {
    "deepfool": lambda attacks: attacks.L2DeepFoolAttack(),
    "deepfool-linf": lambda attacks: attacks.LinfDeepFoolAttack(),
    "ddn": lambda attacks: attacks.DDNAttack(steps=50),
    "ead": lambda attacks: attacks.EADAttack(
        steps=50, binary_search_steps=5, initial_const=1.0, decision_rule="L1", abort_early=False
    ),
    "fmn": lambda attacks: attacks.LInfFMNAttack(steps=50),
    "fmn-l2": lambda attacks: attacks.L2FMNAttack(steps=50),
    "fmn-l1": lambda attacks: attacks.L1FMNAttack(steps=50),
    "fmn-l0": lambda attacks: attacks.L0FMNAttack(steps=50),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOOLBOX)
def test_no_weaker_than_foolbox(name: str, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = trained
    norm, given = str(pool.info(name).norm), {"steps": 50}
    given |= {"binary_search_steps": 5} if name == "ead" else {}
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = FOOLBOX[name](foolbox.attacks).run(wrapped, x, foolbox.criteria.Misclassification(y))
    ours = norms(model, x, y, craft(name, model, x, y, **given), norm)
    assert not ours.isinf().any()
    assert ours.median() <= 1.02 * norms(model, x, y, theirs, norm).median()


EPS = {"linf": 0.15, "l2": 0.8, "l1": 1.7}


@pytest.mark.quick(r"fab-l2|l2-fab")
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["fab", "fab-t"])
def test_no_weaker_than_pyautoattack(name: str, norm: str, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    peer = pytest.importorskip("pyautoattack.fab_pt")
    model, x, y = trained
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
def test_further_starts_find_smaller_perturbations(
    name: str, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = trained
    norm, given = str(pool.info(name).norm), {"steps": 8, "eps": EPS[str(pool.info(name).norm)]}
    given |= {"targets": 2} if name == "fab-t-l2" else {}
    once = norms(model, x, y, craft(name, model, x, y, **given), norm)
    thrice = norms(model, x, y, craft(name, model, x, y, restarts=3, **given), norm)
    assert (thrice <= once).all()
    assert (thrice < once).any()


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_what_is_declared(name: str, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = trained
    given: dict[str, Any] = {"steps": 7}
    given |= {"binary_search_steps": 2} if name == "ead" else {}
    with count_passes(model) as passes:
        craft(name, model, x[:10], y[:10], **given)
    declared = pool.info(name).passes(pool.get(name, eps=1, **given).knobs, classes=10)
    assert declared is not None
    counted = passes.forwards / 10, passes.backwards / 10
    assert counted[0] <= declared[0]
    assert counted[1] <= declared[1]
    if name == "ddn" or name == "ead" or name.startswith("fmn"):
        assert counted == declared
    with count_passes(model) as fewer:
        craft(name, model, x[:10], y[:10], early_stop=True, **given)
    assert fewer.forwards <= passes.forwards
    if name.startswith("fab-t"):
        assert fewer.forwards < passes.forwards / 2


@pytest.mark.parametrize("name", NAMES)
def test_point_that_is_wrong_already_needs_nothing(
    name: str, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, y = trained
    x, y = x[:4], torch.cat([y[:2], (y[2:4] + 1) % 10])
    found = craft(name, model, x, y, steps=5)
    assert torch.equal(found[2:], x[2:])
    assert not torch.equal(found[:2], x[:2])
