"""Slopes that are infinite, and logits of −∞: what attacks and the verifier make of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.audit.competence import logit_flags
from advbench.audit.slope import gradients
from advbench.data import Split
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.stochastic import AveragedDraws
from attacks_pool import pool, verify
from attacks_pool.adapters.containment import Contained
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.calling.slopes import INSIDE, STEEPEST, usable
from attacks_pool.losses import cross_entropy
from attacks_pool.norms import steepest
from attacks_pool.search.ascent import input_gradient, wrong
from attacks_pool.search.boundary import nearest_plane
from attacks_pool.verifier import no_number
from defenses import TrainPlan, registry

INF, NAN = torch.inf, torch.nan
NEEDED = 0.0225
"""√x exceeds 0.15 from here."""


class Root(nn.Module):
    """Logits (√x, 0.15), x the mean of the image, or its first pixel alone."""

    def __init__(self, *, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, images: Tensor) -> Tensor:
        x = images[:, 0, 0, 0] if self.alone else images.mean((1, 2, 3))
        return torch.stack([x.sqrt(), torch.full_like(x, 0.15)], 1)


class Masked(nn.Module):
    """Ten classes, of which all but the first ``finite`` get −∞; or those alone."""

    def __init__(self, finite: int, *, masked: bool) -> None:
        super().__init__()
        self.finite, self.masked = finite, masked
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10))
        with torch.no_grad():
            self.layers[3].weight.mul_(5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        if not self.masked:
            return logits[:, : self.finite]
        return logits.masked_fill(torch.arange(10, device=logits.device) >= self.finite, -INF)


def row(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


class TestUsable:
    """What is made of a gradient."""

    def test_ordinary_rows_keep_their_bits(self) -> None:
        gradient = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 1e-30
        x = torch.full_like(gradient, 0.5)
        assert usable(gradient, x) is gradient
        beside = gradient.clone()
        beside[1, 0, 0, 0] = INF
        assert torch.equal(usable(beside, x)[[0, 2]], gradient[[0, 2]])

    def test_an_infinite_slope_is_measured_inside_the_box(self) -> None:
        """Its size is another's, its sign its own; what is finite is not measured."""
        asked = []

        def again(near: Tensor) -> Tensor:
            asked.append(near)
            return row(50.0, 8.0, 6.0, 50.0)

        found = usable(row(3.0, INF, -INF, NAN), row(0.5, 0.0, 1.0, 0.5), again)
        assert found.flatten().tolist() == [3, 8, -6, 0]
        torch.testing.assert_close(asked[0], row(0.5, INSIDE, 1 - INSIDE, 0.5))
        # A slope that is infinite there too is as steep as the steepest.
        found = usable(row(3.0, INF, -INF), row(0.5, 0.0, 1.0), lambda _near: row(1.0, INF, NAN))
        assert found.flatten().tolist() == [3, 3, -3]
        assert usable(row(INF, -INF), row(0.0, 1.0)).flatten().tolist() == [1, -1]

    @pytest.mark.parametrize("size", [1e13, 1e25, 3e38])
    def test_a_huge_gradient_has_its_direction(self, size: float) -> None:
        gradient = row(3.0, 4.0) * (size / 4)
        found = usable(gradient, row(0.5, 0.5), lambda _near: gradient)
        assert float(found.abs().max()) <= STEEPEST
        torch.testing.assert_close(steepest(found, "l2"), row(0.6, 0.8))

    def test_what_the_box_stops_does_not_drown_the_rest(self) -> None:
        """At 0 no step goes down, at 1 none goes up; a parameter that renders images may do both."""
        x, gradient = row(0.0, 1.0, 0.5, 0.0), row(-INF, INF, 2.0, -1.0)
        assert usable(gradient, x).flatten().tolist() == [0, 0, 2, -1]
        assert usable(-gradient, x).flatten().tolist() == [2, -2, -2, 1]
        assert usable(gradient, x, boxed=False).flatten().tolist() == [-2, 2, 2, -1]


@pytest.mark.parametrize("name", ["fgsm", "bim", "ffgsm", "mim", "nim", "vmi", "tim", "ta:FGSM", "fb:FGSM"])
def test_a_single_pixel_is_moved_by_eps(name: str) -> None:
    """The slope at 0 is +∞, its sign +1."""
    x, y = torch.zeros(1, 1, 1, 1), torch.tensor([1])
    x_adv = pool.get(name, eps=0.04)(Root(), x, y, generator=keyed_generator(0))
    assert float(x_adv) == pytest.approx(0.04)


OWN = [
    name
    for name in pool.names()
    # A step of the divergence is 0 · ∞; this ensemble has its parts' tests, and takes minutes.
    if pool.entry(name).info.norm and pool.entry(name).info.access == "white-box" and name != "tpgd"
    if not name.startswith("autoattack")
]
THEIRS = ["ta:PGD", "ta:PGDL2", "ta:APGD", "ta:MIFGSM", "ta:DeepFool", "ta:FAB", "fb:LinfPGD", "fb:FGM"]
THEIRS += [
    "fb:LinfDeepFoolAttack",
    "fb:LInfFMNAttack",
    "aa:apgd-ce",
    "aa:apgd-ce-l2",
    "aa:apgd-ce-l1",
    "aa:fab",
]
SIDE = 6


@pytest.mark.quick(
    r"False-(fgsm|pgd|mim|apgd|apgd-t|fab|deepfool|cw|ead|fmn|pgd-l1|ta:PGD|fb:LinfPGD|aa:apgd-ce)"
)
@pytest.mark.parametrize("name", OWN + THEIRS)
@pytest.mark.parametrize("alone", [False, True])
def test_every_attack_climbs_an_infinite_slope(name: str, alone: bool) -> None:
    """In a ball that reaches far enough; ``alone``: all other pixels are flat."""
    pixels = 1 if alone else SIDE**2
    info = pool.get(name, eps=1.0).info
    shortest = {"linf": NEEDED, "l2": NEEDED * pixels**0.5, "l1": NEEDED * pixels, "l0": 1.0}
    eps = 1.8 * shortest[str(info.norm)]
    x, y = torch.zeros(2, 1, SIDE, SIDE), torch.tensor([1, 1])
    if alone:
        x[:, :, SIDE // 2 :] = 0.5
    if name == "rfgsm":  # its step is half of eps, from a random corner
        eps *= 2
    x_adv = pool.get(name, eps=eps)(Root(alone=alone), x, y, generator=keyed_generator(0))
    verdict = verify(Root(alone=alone), x, y, x_adv, norm=info.norm, eps=eps, kind=info.kind)
    assert not verdict.robust.any()
    assert not verdict.invalid.any()


def test_a_steep_boundary_is_near() -> None:
    """Its plane has the slope a little inside the box, and is nearer than one that is 0.1 away."""

    class Three(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten(1)
            return torch.stack([x[:, 0].sqrt() - 0.1, x[:, 1] - 0.4, 0 * x[:, 0] + 0.2], 1)

    x = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2)
    gap, plane, _ = nearest_plane(Three(), x, torch.tensor([2]), torch.tensor([[1, 0]]), "linf")
    assert float(gap) == pytest.approx(-0.3)
    assert plane.flatten().tolist() == pytest.approx([0.5 / INSIDE**0.5, 0])


def test_minimal_perturbations_are_as_small_through_a_root() -> None:
    """Half of the black pixels' slopes lead out of the box: a search that follows those does not move."""
    layer = nn.Linear(SIDE**2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, SIDE**2, generator=torch.Generator().manual_seed(5)))
        layer.bias.zero_()

    class Rooted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = layer(images.flatten(1).sqrt())
            return logits

    x = torch.rand(24, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    x[x < 0.5] = 0
    y = Rooted()(x).argmax(1)
    robust = {}
    for name in ("pgd", "fab", "fab-t", "fmn", "deepfool-linf", "fb:LinfDeepFoolAttack"):
        info = pool.get(name, eps=0.01).info
        x_adv = pool.get(name, eps=0.01)(Rooted(), x, y, generator=keyed_generator(0))
        robust[name] = int(verify(Rooted(), x, y, x_adv, norm="linf", eps=0.01, kind=info.kind).robust.sum())
    assert 2 < robust["pgd"] < 22
    assert max(robust.values()) <= robust["pgd"] + 2, robust


def test_free_training_follows_it() -> None:
    defense = registry.build("free", Root())
    attack = pool.get("fgsm", eps=0.04)
    defense.model.scale = nn.Parameter(torch.ones(1))
    data = [(torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.long))]
    defense.fit(data, [attack], plan=TrainPlan(epochs=1, eps_warmup=0))
    assert defense.training_state()["delta"].unique().tolist() == pytest.approx([0.04])


def test_the_audit_sees_an_infinite_gradient_as_one() -> None:
    x, y = torch.zeros(8, 1, 2, 2), torch.ones(8, dtype=torch.long)
    found = gradients(Root(), x, y, 0.04, seed=0)
    assert (found.ce, found.margin) == (0, 0)

    class Nothing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return Root()(images) + 0 * (0 * images.sum(1).amax((1, 2))).sqrt()[:, None]

    assert gradients(Nothing(), x, y, 0.04, seed=0).ce == 8


MET_MASKED = ["fgsm", "pgd", "pgd@dlr", "apgd-dlr", "apgd-t", "apgd-mm-l2", "mt-pgd", "pma", "tpgd"]
MET_MASKED += ["fab", "fab-t", "deepfool", "cw", "ead", "fmn", "fmn-l2", "eotpgd", "screen", "brightness"]
MET_MASKED += ["ta:APGD", "ta:DeepFool", "fb:LinfPGD", "fb:L2DeepFoolAttack", "aa:apgd-ce", "aa:fab-t"]
MET_MASKED += ["square", "spsa"]


class TestMaskedClasses:
    """A logit of −∞ rules its class out; the others decide."""

    def test_what_is_no_number(self) -> None:
        rows = [[1.0, -INF, -INF], [1.0, NAN, 0.0], [1.0, INF, 0.0], [-INF, -INF, -INF], [1.0, 2.0, 3.0]]
        logits = torch.tensor(rows)
        assert no_number(logits).tolist() == [False, True, True, True, False]
        assert wrong(logits, torch.tensor([0, 0, 1, 0, 2])).tolist() == [False, True, True, True, False]

    def test_the_evaluation_and_the_audit_count_as_usual(self) -> None:
        model = Masked(1, masked=True)
        x = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        y = torch.arange(40) % 10
        attack = pool.get("fgsm", eps=0.1)
        row = evaluate(lambda _attack: model, Split(x, y), [(attack, len(x))], stage=0, seed=0)
        assert [flag.code for flag in logit_flags(model, x, 0)] == []
        assert int(row.clean.sum()) == 4
        assert row.cells[0].robust == 4

    @pytest.mark.quick(r"(?!ta:DeepFool|screen|aa:fab-t).*-2")
    @pytest.mark.parametrize("finite", [2, 3])
    @pytest.mark.parametrize("name", MET_MASKED)
    def test_attacks_find_what_they_find_without_the_masked_classes(self, name: str, finite: int) -> None:
        masked, alone = (Masked(finite, masked=mask).eval() for mask in (True, False))
        x = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        y = alone(x).argmax(1)
        name, _, loss = name.partition("@")
        info = pool.get(name, eps=0.1).info
        eps = {"linf": 0.03, "l2": 0.2, "l1": 0.6, None: 0.2}[info.norm]
        knobs = {"steps": 20} if "steps" in info.knobs else {}
        attack = pool.get(name, eps=eps, **knobs, **({"loss": loss} if loss else {}))
        verdicts = []
        for model in (masked, alone):
            x_adv = attack(model, x, y, generator=keyed_generator(0), early_stop=True)
            verdicts.append(verify(model, x, y, x_adv, norm=info.norm, eps=eps, kind=info.kind))
        robust = [int(verdict.robust.sum()) for verdict in verdicts]
        assert not verdicts[0].not_a_number.any()
        assert abs(robust[0] - robust[1]) <= 1, robust
        assert robust[1] < 24

    def test_gradients_are_those_without_the_masked_classes(self) -> None:
        x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        y = torch.zeros(5, dtype=torch.long)
        masked, alone = Masked(3, masked=True), Masked(3, masked=False)
        for wrap in (nn.Sequential, lambda model: AveragedDraws(model, 3)):
            found = [input_gradient(wrap(model), x, y, cross_entropy) for model in (masked, alone)]
            for one, other in zip(found[0][::2], found[1][::2], strict=True):
                torch.testing.assert_close(one, other)

    def test_other_libraries_see_numbers(self) -> None:
        x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        logits = Contained(Masked(3, masked=True), x)(x).detach()
        assert torch.isfinite(logits).all()
        assert torch.equal(logits[:, :3], Masked(3, masked=False)(x))
        assert float(F.softmax(logits, 1)[:, 3:].max()) == 0

    @pytest.mark.parametrize("name", ["at", "trades", "mart", "lwf", "air"])
    def test_defenses_train_on(self, name: str) -> None:
        """A divergence between two answers that rule out the same classes is finite."""
        defense = registry.build(name, Masked(3, masked=True), seed=0)
        x = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        for attack in pool.sequence("pgd,mim", budget="digits", training={"pgd": {"steps": 2}}):
            losses = defense.fit([(x, torch.arange(12) % 3)], [attack], plan=TrainPlan(epochs=1))
            assert all(value == value for epoch in losses for value in epoch.values())
        assert all(bool(weight.isfinite().all()) for weight in defense.parameters())


def test_a_model_that_clamps_its_images_is_attacked_like_one_that_does_not() -> None:
    """At 0 and 1 torch's clamp passes no gradient, and PGD would stay there; a flat model stays flat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
        x = torch.rand(20, 1, 6, 6).mul(3).sub(1).clamp(0, 1)
    clamping = nn.Sequential(nn.Hardtanh(0.0, 1.0), plain)
    y = plain(x).argmax(1)
    found = [input_gradient(model, x, y, cross_entropy)[0] for model in (plain, clamping)]
    walls = (x == 0) | (x == 1)
    assert bool(walls.any())
    torch.testing.assert_close(found[1][~walls], found[0][~walls])
    assert float((found[1].sign() == found[0].sign()).float().mean()) > 0.99
    for name in ("fgsm", "pgd", "mim"):
        attack = pool.get(name, eps=0.1)
        left = [int((model(attack(model, x, y)).argmax(1) == y).sum()) for model in (plain, clamping)]
        assert abs(left[0] - left[1]) <= 1
    flat = usable(torch.zeros_like(x), x, lambda near: torch.ones_like(near))
    assert not bool(flat.any())
