"""IBP: the loss against a slow version in the paper's notation, schedules, bounds, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import attack, attacks, cross_entropy, points, small, stopped_and_resumed
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.cli.main import invoke
from advbench.evaluation.certificates.proving import Prover
from advbench.models import build_model
from advbench.models.normalize import Normalize
from attacks_pool import InputError
from defenses import IBP, Stage, TrainPlan
from defenses.methods.ibp import balls_of
from defenses.parts.bounded import Bounded
from defenses.parts.intervals import LOWEST, ball

Network = Callable[..., nn.Sequential]
PLAN = TrainPlan(epochs=1, lr=0.05, eps_warmup=0)


def dense(layer: nn.Module, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """A layer that is affine, as W and b on flattened images."""
    with torch.no_grad():
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        b = layer(zero).flatten()
        unit = torch.eye(zero.numel(), dtype=torch.float64).view(-1, *shape)
        return (layer(unit).flatten(1) - b).T, b


def by_hand(model: nn.Sequential, x: Tensor, y: Tensor, eps: float, kappa: float) -> float:
    """κ CE(z) + (1 − κ) CE(ẑ), an image at a time, by μ ± |W| r for each layer and elision of the last."""
    rows, plain = [], []
    for image, label in zip(x, y, strict=True):
        low, high = (image - eps).clamp(0, 1), (image + eps).clamp(0, 1)
        shape = image.shape
        *front, last = model
        for layer in front:
            if isinstance(layer, nn.ReLU):
                low, high = low.clamp(min=0), high.clamp(min=0)
                continue
            with torch.no_grad():
                after = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
            W, b = dense(layer, shape)
            mu, r = ((high + low) / 2).flatten(), ((high - low) / 2).flatten()
            middle, radius = W @ mu + b, W.abs() @ r
            low, high, shape = (middle - radius).view(after), (middle + radius).view(after), after
        mu, r = (high + low) / 2, (high - low) / 2
        upper = []
        for k in range(len(last.weight)):
            c = (last.weight[k] - last.weight[label]).detach()
            shift = float((last.bias[k] - last.bias[label]).detach())
            upper.append(float(c @ mu + c.abs() @ r) + shift)
        rows.append([math.exp(u) / sum(map(math.exp, upper)) for u in upper])
        plain.append(model(image[None])[0].detach().softmax(0).tolist())
    return kappa * cross_entropy(plain, y) + (1 - kappa) * cross_entropy(rows, y)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("kappa", "eps"), [(0.5, 0.1), (0.2, 0.02), (1.0, 0.1), (0.0, 0.05)])
def test_the_loss_by_hand(norm: bool, kappa: float, eps: float) -> None:
    """Batch norm counts in the bounds by its running statistics."""
    x, y = points(1, dtype=torch.float64)
    model = small(norm=norm).double()
    if norm:
        model(4 * x - 1)
    model.eval()
    defense = IBP(model, kappa=kappa, warmup_share=0.0)
    terms = defense.loss(x, y, Stage(1, (attack("pgd", eps=eps),), PLAN))
    assert float(terms["loss"].detach()) == pytest.approx(by_hand(model, x, y, eps, kappa), rel=1e-9)
    assert set(terms) == {"loss", "ce", "worst"}


def test_both_schedules_are_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """ε from 0 to its full value and κ from 1 to its own, over the share of each stage, then constant."""
    x, y = points(1)
    defense = IBP(small(), kappa=0.4, warmup_share=0.5, scale=1.5)
    seen: list[float] = []
    plain = IBP.worst_logits

    def noted(self: IBP, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        seen.append(eps)
        return plain(self, x, y, norm, eps)

    monkeypatch.setattr(IBP, "worst_logits", noted)
    for done, eps, kappa in ((0.0, 0.0, 1.0), (0.25, 0.15, 0.7), (0.5, 0.3, 0.4), (0.9, 0.3, 0.4)):
        terms = defense.loss(x, y, Stage(2, (attack("pgd", eps=0.2),), PLAN, (), done))
        assert seen.pop() == pytest.approx(eps)
        expected = kappa * terms["ce"] + (1 - kappa) * terms["worst"]
        assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_gradients_reach_every_weight_through_the_bounds() -> None:
    """With κ = 0, from the worst logits alone."""
    x, y = points(1)
    model = small().eval()
    IBP(model, kappa=0.0, warmup_share=0.0).loss(x, y, Stage(1, tuple(attacks("pgd")), PLAN))[
        "loss"
    ].backward()
    assert all(bool(one.grad.any()) for one in model.parameters() if one.grad is not None)
    assert all(one.grad is not None for one in model.parameters())


def test_of_several_attacks_the_largest_ball_of_each_norm_counts() -> None:
    met = [attack("pgd", eps=0.1), attack("fgsm", eps=0.2), attack("pgd-l2", eps=0.5), attack("cw", eps=0.4)]
    assert balls_of(met) == {"linf": 0.2, "l2": 0.5}
    x, y = points(1, dtype=torch.float64)
    defense = IBP(small().double().eval(), kappa=0.0, warmup_share=0.0)

    def loss(*chosen: Any) -> float:
        return float(defense.loss(x, y, Stage(1, chosen, PLAN))["loss"].detach())

    assert loss(*met) == pytest.approx((loss(met[1]) + loss(met[2])) / 2)


class Odd(nn.Module):
    """Most operations that have bounds, with images (N, 2, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.second = nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.gelu, self.act = nn.GELU(approximate="tanh"), nn.LeakyReLU(0.2)
        self.pool, self.drop = nn.MaxPool2d(3, 2, padding=1), nn.Dropout(0.5)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 5)."""
        a = self.gelu(self.first(2.0 - 3 * x))
        b = F.silu(self.norm(self.second(a))) - a / -2
        b += F.hardswish(a)
        c = torch.cat([self.pool(b), F.avg_pool2d(self.act(a), 2)], dim=1)
        pooled = torch.cat([c.mean((2, 3)), torch.flatten(F.adaptive_avg_pool2d(c, 2), 1)], 1)
        return self.head(self.drop(F.elu(pooled)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-cnn": lambda: nn.Sequential(
        Normalize((0.3, 0.4), (0.2, 0.5)),
        build_model("digits-cnn", num_classes=5, in_channels=2, image_size=8, seed=0),
    ),
    "resnet": lambda: build_model("resnet-20", num_classes=5, in_channels=2, image_size=8, seed=0),
    "odd": Odd,
}


def made(name: str) -> nn.Module:
    """A network of float64 whose batch norm has seen images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().double()
        for _ in range(5):
            model.train()(torch.rand(16, 2, 8, 8, dtype=torch.float64))
    return model.eval()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_image_of_the_ball_exceeds_the_bounds(name: str, norm: str) -> None:
    """Random images and ascents; at radius 0 the bounds are the differences of logits."""
    model, eps = made(name), {"linf": 0.03, "l2": 0.2}[norm]
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(4, 2, 8, 8, dtype=torch.float64, generator=draws)
    y = model(x).argmin(1)
    bounded = Bounded(model, "ibp")
    with torch.no_grad():
        point = bounded.worst_logits(ball(x, norm, 0.0), y)
        upper = bounded.worst_logits(ball(x, norm, eps), y)

    def apart(images: Tensor) -> Tensor:
        logits = model(images)
        return logits - logits.gather(1, y[:, None])

    torch.testing.assert_close(point, apart(x), atol=1e-4 if norm == "l2" else 1e-9, rtol=1e-4)
    moved = x.clone()
    for _ in range(60):
        moved.requires_grad_(True)
        found = apart(moved)
        assert bool((found <= upper + 1e-9).all())
        (slope,) = torch.autograd.grad((found * torch.rand(found.shape, generator=draws)).sum(), moved)
        step = torch.where(
            torch.rand(4, 1, 1, 1, generator=draws) < 0.5, slope, torch.randn(x.shape, generator=draws)
        )
        moved = moved.detach() + eps * (
            step.sign() if norm == "linf" else step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        )
        away = moved - x
        away = (
            away.clamp(-eps, eps)
            if norm == "linf"
            else away / (away.flatten(1).norm(dim=1) / eps).clamp(min=1).view(-1, 1, 1, 1)
        )
        moved = (x + away).clamp(0, 1)


@pytest.mark.parametrize("name", ["digits-cnn", "resnet"])
def test_certificates_give_the_same_bounds(name: str) -> None:
    """Both go by intervals, one with gradients and the other with outward rounding."""
    model = made(name)
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    y = model(x.double()).argmax(1)
    upper = Bounded(model, "ibp").worst_logits(ball(x.double(), "linf", 0.01), y)
    lower = Prover(model.float(), (2, 8, 8)).margins(x, y, norm="linf", eps=0.01, method="ibp").lower
    lower = lower.scatter(1, y[:, None], 0.0)
    torch.testing.assert_close(upper.detach(), -lower, rtol=1e-4, atol=1e-6)


def test_where_activations_are_lowest() -> None:
    for name, lowest in LOWEST.items():
        how = {"approximate": "tanh"} if name == "gelu_tanh" else {}
        grid = torch.linspace(-3, 0, 300_001, dtype=torch.float64)
        values = getattr(F, name.removesuffix("_tanh"))(grid, **how)
        assert float(grid[values.argmin()]) == pytest.approx(lowest, abs=2e-5), name


class Product(nn.Module):
    """An operation without bounds."""

    def forward(self, x: Tensor) -> Tensor:
        """x²."""
        return x * x


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Product(), "mul"),
        (nn.LayerNorm(8), "LayerNorm (1)"),
        (nn.Softmax(1), "Softmax (1)"),
        (nn.LeakyReLU(-0.5), "LeakyReLU (1)"),
        (nn.BatchNorm2d(1, track_running_stats=False), "BatchNorm2d (1)"),
    ],
)
def test_networks_without_bounds_are_refused(layer: nn.Module, said: str) -> None:
    """In one line that names the operation, before anything is trained."""
    model = nn.Sequential(nn.Identity(), layer, nn.Flatten(), nn.Linear(64, 10))
    x, y = points(1)
    with pytest.raises(InputError) as caught:
        IBP(model).fit([(x, y)], [attack("pgd")], plan=PLAN)
    assert f"ibp has no bounds for {said}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="ibp has no bounds"):
        IBP(model).check_images(x)


def test_a_run_without_bounds_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = "nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)"
    code = f"from torch import nn\n\n\ndef make():\n    return nn.Sequential({layers})\n"
    (tmp_path / "layer_normed.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    words = ["run", "--defense", "ibp", "--sequence", "pgd", "--model", "layer_normed:make"]
    assert invoke(words) == 2
    said = capsys.readouterr().err
    assert "ibp has no bounds for LayerNorm (1)" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("other", "why"), [("pgd-l1", "is bounded in l1"), ("rotation-translation", "has no norm")]
)
def test_other_norms_are_refused(other: str, why: str) -> None:
    with pytest.raises(
        InputError, match=rf"^ibp cannot train against '{other}', which {why}.*\(allowed: linf, l2\)$"
    ):
        IBP(small()).fit([points(1)], [attack(other)], plan=PLAN)


def test_resuming_is_exact(digits: Any) -> None:
    data = [(digits.train.x[:12], digits.train.y[:12]), (digits.train.x[12:24], digits.train.y[12:24])]
    plan = TrainPlan(epochs=2, lr=0.05, eps_warmup=0)
    stopped_and_resumed(
        lambda: IBP(small(), seed=1), data, [attacks("fgsm"), attacks("pgd")], at=3, plan=plan
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kappa": -0.1}, "kappa=-0.1 must be from 0 to 1"),
        ({"kappa": math.nan}, "kappa=nan must be from 0 to 1"),
        ({"warmup_share": 1.5}, "warmup_share=1.5 must be from 0 to 1"),
        ({"scale": 0.0}, "scale=0.0 must be above 0 and finite"),
    ],
)
def test_parameters_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        IBP(small(), **given)
