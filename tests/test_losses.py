"""Losses with few classes: every loss of every attack finds what is exact for a linear model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks_pool import InputError, pool, verify
from attacks_pool.calling.randomness import keyed_generator
from attacks_pool.losses import LOSSES, dlr, margin, targeted_dlr

SIDE = 6
INDIRECT = {"dim", "tim", "tpgd"}
"""Attacks that follow another gradient than that of the loss at the point, or know no label."""
SEARCHES = [
    (name, loss)
    for name in pool.names()
    for info in [pool.entry(name).info]
    if info.norm in ("linf", "l2", "l1") and info.access == "white-box" and info.kind == "budgeted"
    if "steps" in info.knobs and name not in INDIRECT
    for loss in (info.knobs["loss"].choices if "loss" in info.knobs else (None,))
]
"""Each iterative white-box attack in a ball, with each of its losses."""


def linear(classes: int, *, twin: bool = False) -> nn.Sequential:
    """A linear classifier of 1×6×6 images; with ``twin`` its last two classes are always level."""
    layer = nn.Linear(SIDE * SIDE, classes)
    draws = torch.Generator().manual_seed(classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
        layer.bias.zero_()
        if twin:
            layer.weight[-1] = layer.weight[-2]
    return nn.Sequential(nn.Flatten(), layer).eval()


def exact(model: nn.Sequential, norm: str, count: int = 24) -> tuple[Tensor, Tensor, Tensor, float]:
    """Points, labels, which of them no perturbation within eps fools, and eps; none is near that border."""
    draws = torch.Generator().manual_seed(3)
    x = 0.5 + 0.2 * (torch.rand(2 * count, 1, SIDE, SIDE, generator=draws) - 0.5)
    weight, logits = model[1].weight.detach(), model(x).detach()
    y = logits.argmax(1)
    normals = weight[None] - weight[y][:, None]
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    lead = logits.gather(1, y[:, None]) - logits
    away = lead / torch.linalg.vector_norm(normals, ord=dual, dim=2)
    away = away.scatter(1, y[:, None], torch.inf).amin(1)
    eps = float(away.median())
    order = ((away - eps).abs() / eps).argsort(descending=True)
    some = order[:count]
    return x[some], y[some], away[some] > eps, eps


@pytest.mark.quick(r"(2-False|3-True)-.*")
@pytest.mark.parametrize(("name", "loss"), SEARCHES)
@pytest.mark.parametrize(("classes", "twin"), [(2, False), (3, False), (3, True)])
def test_no_loss_is_flat_with_few_classes(name: str, loss: str | None, classes: int, twin: bool) -> None:
    """Those points survive that can, and no others."""
    model, norm = linear(classes, twin=twin), str(pool.entry(name).info.norm)
    x, y, robust, eps = exact(model, norm)
    assert 6 <= int(robust.sum()) <= 18
    attack = pool.get(name, eps=eps, steps=40, **({} if loss is None else {"loss": loss}))
    x_adv = attack(model, x, y, generator=keyed_generator(0), early_stop=True)
    assert torch.equal(verify(model, x, y, x_adv, norm=norm, eps=eps).robust, robust)


def test_dlr_with_two_classes_moves_as_cross_entropy_does() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gap = x.flatten(1).mean(1) - 0.5
            return torch.stack([-gap, gap], 1)

    x, y = torch.full((1, 1, 1, 1), 0.45), torch.tensor([0])
    for loss in LOSSES:
        for name in ("pgd", "eotpgd"):
            attack = pool.get(name, eps=0.1, loss=loss, random_start=False, steps=10)
            assert float(attack(Two(), x, y)) == pytest.approx(0.55), (name, loss)
        # It starts at random and keeps the first point that fools.
        assert float(pool.get("apgd", eps=0.1, loss=loss)(Two(), x, y, generator=keyed_generator(0))) > 0.5


@pytest.mark.parametrize("name", ["ta:APGD", "ta:UPGD", "aa:apgd-dlr", "aa:apgd-dlr-l2", "aa:rand"])
def test_the_ratio_of_other_libraries_is_refused(name: str) -> None:
    """Their own code: it divides by a third logit that is not there."""
    knobs = {"loss": "dlr"} if name.startswith("ta:") else {}
    x, y, _, _ = exact(linear(2), "linf", 4)
    with pytest.raises(InputError, match=r"needs a model of 3 classes or more, not 2"):
        pool.get(name, eps=0.1, **knobs)(linear(2), x, y)
    if knobs:
        pool.get(name, eps=0.1, loss="ce", steps=2)(linear(2), x, y)
        pool.get(name, eps=0.1, loss="dlr", steps=2)(linear(3), *exact(linear(3), "linf", 4)[:2])


class TestRatios:
    """The ratio where it has a value, the difference where it would be constant."""

    y = torch.tensor([0])

    def slope(self, loss: object, logits: list[float], *more: Tensor) -> Tensor:
        given = torch.tensor([logits], requires_grad=True)
        (found,) = torch.autograd.grad(loss(given, self.y, *more).sum(), given)  # type: ignore[operator]
        return found[0]

    def test_plain(self) -> None:
        assert float(dlr(torch.tensor([[5.0, 3.0, 1.0]]), self.y)) == pytest.approx(-0.5)
        level = torch.tensor([[5.0, 3.0, 3.0]])
        assert torch.equal(dlr(level, self.y), margin(level, self.y))

    def test_masked(self) -> None:
        """A class that the model rules out is in no denominator."""
        out = -torch.inf
        one, two = torch.tensor([1]), torch.tensor([2])
        assert float(dlr(torch.tensor([[5.0, 3.0, 1.0, out]]), self.y)) == pytest.approx(-0.5)
        assert float(dlr(torch.tensor([[5.0, 3.0, out, out]]), self.y)) == -2
        assert float(targeted_dlr(torch.tensor([[5.0, 3.0, 2.0, out]]), self.y, two)) == pytest.approx(-1.2)
        assert float(targeted_dlr(torch.tensor([[5.0, 3.0, out, out]]), self.y, one)) == -2

    @pytest.mark.parametrize(
        "logits", [[5.0, 3.0], [5.0, 3.0, 3.0], [5.0, 3.0, 3.0, 3.0], [2.0, 1.0, -torch.inf]]
    )
    def test_sloping(self, logits: list[float]) -> None:
        """No gradient is zero, where a class could be raised, or no number."""
        slopes = [self.slope(dlr, logits), self.slope(targeted_dlr, logits, torch.tensor([1]))]
        for slope in slopes:
            assert torch.isfinite(slope).all()
            assert float(slope[0]) < 0
            assert float(slope[1:].max()) > 0
