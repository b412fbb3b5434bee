"""Bounds of networks contain what sampling finds, are exact where known, and never prove too much."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.evaluation.certificates.activation_steps import Curve, Rectifier
from advbench.evaluation.certificates.bounding import Bounds
from advbench.evaluation.certificates.boxes import NORMS, Balls, Box
from advbench.evaluation.certificates.curve_table import CURVES
from advbench.evaluation.certificates.proving import METHODS, Prover
from advbench.models import build_model
from advbench.models.normalize import Normalize
from attacks_pool import InputError, pool

SHAPE = (2, 6, 6)


class Shifted(nn.Module):
    """Constants of every shape between convolutions, and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 3, 2)
        self.register_buffer("shift", torch.randn(1, 3, 5, 5))
        self.register_buffer("factor", torch.randn(5, 1))
        self.register_buffer("matrix", torch.randn(48, 4) / 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu((self.first(x) + self.shift) * self.factor)
        return torch.relu(1 - self.second(y)).reshape(-1, 48) @ self.matrix


class Residual(nn.Module):
    """Two branches that are added, concatenated and averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first(x))
        z = torch.relu(self.second(y) + y * 0.5 - 0.1)
        return self.last(torch.cat([y, z], 1).mean([2, 3]))


def head(channels: int) -> list[nn.Module]:
    return [
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, 5),
        nn.Tanh(),
        nn.Linear(5, 4),
    ]


def norm_with_statistics() -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(3)
    nn.init.uniform_(found.running_mean), nn.init.uniform_(found.running_var, 0.3, 2)
    nn.init.uniform_(found.weight, -1, 1), nn.init.uniform_(found.bias)
    return found


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4)
    ),
    "strided": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 2), *head(3)
    ),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), (1, 2), (2, 0), (2, 1), groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding="same"),
        *head(3),
    ),
    "reflected": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), *head(3)),
    "normed": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.2, 0.3]), nn.Conv2d(2, 3, 3), norm_with_statistics(), nn.GELU(), *head(3)
    ),
    "max-pooled": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 2), *head(3)
    ),
    "max-padded": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), *head(3)
    ),
    "avg-pooled": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(3, 2, 1), nn.Dropout(), *head(3)
    ),
    "residual": Residual,
    "shifted": Shifted,
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), *head(6)
    ),
    "uneven": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (2, 1), (2, 1), (1, 0)),
        nn.LeakyReLU(0.1),
        nn.Conv2d(3, 3, (1, 2), (1, 2), (0, 1), (1, 2)),
        *head(3),
    ),
    "skipping": lambda: nn.Sequential(nn.Conv2d(2, 3, 1, 2), nn.ReLU(), nn.Conv2d(3, 3, 2), *head(3)),
    "smooth": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), norm_with_statistics(), nn.GELU(), nn.Conv2d(3, 3, 2), nn.Tanh(), *head(3)
    ),
    "leaky": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.PReLU(3), nn.Conv2d(3, 3, 3), nn.LeakyReLU(-0.3), *head(3)
    ),
    "curves": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(72, 8),
        nn.SiLU(),
        nn.Linear(8, 8),
        nn.ELU(),
        nn.Linear(8, 8),
        nn.Hardswish(),
        nn.Linear(8, 4),
    ),
}


def made(kind: str, gain: float = 1.0) -> nn.Module:
    torch.manual_seed(sum(map(ord, kind)))
    model = NETWORKS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return model


def sampled(ball: Balls, count: int) -> Tensor:
    """Points of one ball: random ones inside, corners, and points with few pixels changed."""
    torch.manual_seed(0)
    shape = (count, *ball.centre.shape[1:])
    step = torch.rand(shape, dtype=torch.float64) * 2 - 1
    step[::2] = step[::2].sign()
    step[::5] *= torch.rand_like(step[::5]) < 0.1
    flat = step.flatten(1)
    if ball.norm != "linf":
        length = flat.norm(dim=1) if ball.norm == "l2" else flat.abs().sum(1)
        flat = flat / length.clamp_min(1e-9)[:, None]
    return (ball.centre + ball.eps * flat.view(shape)).clamp(0, 1)


EPS = {"linf": 0.08, "l2": 0.5, "l1": 1.0}


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_no_sampled_output_leaves_its_bounds(kind: str) -> None:
    """Of any step, by intervals and by backward passes; and the margins' bounds hold for every method."""
    check_bounds(kind, "linf", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_no_output_of_many_leaves_its_bounds(kind: str, norm: str) -> None:
    """In every norm."""
    check_bounds(kind, norm, 10_000)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_no_sampled_output_leaves_its_bounds_in_other_norms(norm: str) -> None:
    """The first layer's bounds come from the dual norm."""
    check_bounds("strided", norm, 1000)


def check_bounds(kind: str, norm: str, count: int) -> None:
    model = made(kind, 1.5)
    prover = Prover(model, SHAPE)
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    whole = Balls(x.double(), norm, EPS[norm])
    bounds = Bounds.by_intervals(prover.network, whole)
    better = bounds.refined(steps=3)
    margins = {m: prover.margins(x, y, norm=norm, eps=EPS[norm], method=m).lower for m in METHODS}
    for point in (0, 1):
        found = [sampled(Balls(whole.centre[point : point + 1], norm, EPS[norm]), count)]
        for index, step in enumerate(prover.network.steps):
            if index:
                found.append(step.value(*(found[number] for number in step.inputs)))
            for box in (bounds.boxes[index], better.boxes[index]):
                assert (found[index] >= box.low[point]).all(), (index, step)
                assert (found[index] <= box.high[point]).all(), (index, step)
        logits = found[-1]
        assert torch.allclose(logits, prover.network.values(found[0]))
        least = (logits[:, y[point], None] - logits).amin(0)
        for method, lower in margins.items():
            rest = torch.arange(4) != y[point]
            assert (lower[point][rest] <= least[rest]).all(), method
    assert (margins["crown"] >= margins["ibp"]).all()
    assert (margins["alpha-crown"] >= margins["crown"]).all()
    assert (margins["crown"] > margins["ibp"] + 1e-6).any()


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_no_attack_breaks_what_is_proved(kind: str) -> None:
    """At many radii, with restarts; and something is proved at all."""
    model = made(kind)
    prover = Prover(model, SHAPE)
    x = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    proved = 0
    for eps in (0.01, 0.05, 0.15):
        sure = prover.margins(x, y, norm="linf", eps=eps, until_proved=True).proved
        proved += int(sure.sum())
        if sure.any():
            attack = pool.get("pgd", eps=eps, steps=20, restarts=4)
            crafted = attack(model, x[sure], y[sure], generator=torch.Generator().manual_seed(0))
            assert (model(crafted).argmax(1) == y[sure]).all(), eps
    assert proved


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_has_its_exact_margin(norm: str) -> None:
    """Inside the range of images: margin − eps · (dual norm of the difference of weights)."""
    torch.manual_seed(0)
    model = nn.Sequential(Normalize([0.4, 0.5], [0.2, 0.3]), nn.Flatten(), nn.Linear(72, 4))
    x = 0.4 + 0.2 * torch.rand(5, *SHAPE)
    y, eps = torch.tensor([0, 1, 2, 3, 0]), 0.05
    weight = model[2].weight.double() / torch.tensor([0.2, 0.3]).double().repeat_interleave(36)
    for method in ("ibp", "crown", "alpha-crown"):
        found = Prover(model, SHAPE).margins(x, y, norm=norm, eps=eps, method=method).lower
        logits = model(x).double()
        for point, label in enumerate(y.tolist()):
            for other in {0, 1, 2, 3} - {label}:
                row = weight[label] - weight[other]
                dual = {"linf": row.abs().sum(), "l2": row.norm(), "l1": row.abs().max()}[norm]
                exact = logits[point, label] - logits[point, other] - eps * dual
                assert found[point, other] == pytest.approx(exact.item(), abs=1e-5)


def test_one_neuron_by_hand() -> None:
    """ReLU on [-1, 3]: the chord 3/4·x + 3/4 above, x below; a leak of 0.5 makes the chord 7/8·x + 3/8."""
    low, high = torch.tensor([[-1.0]]).double(), torch.tensor([[3.0]]).double()
    for leak, slope, height in ((0.0, 0.75, 0.75), (0.5, 0.875, 0.375)):
        lines = Rectifier((0,), ((1,),), torch.tensor(leak).double()).relaxed(Box(low, high))
        values = [float(one) for one in (lines.lower, lines.upper, lines.height)]
        assert values == pytest.approx([1.0, slope, height], abs=1e-9)
        lines = Rectifier((0,), ((1,),), torch.tensor(leak).double()).parallel(Box(low, high))
        assert [float(lines.lower), float(lines.upper)] == pytest.approx([slope, slope], abs=1e-9)

    # -x + ReLU(x) on [-1, 3] is at least 0, which only a lower slope of 1 shows; the slope 0 gives -3.
    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = (x * 4 - 1).flatten(1)
            return torch.cat([torch.relu(z) - z, z * 0 - 0.5], 1)

    found = Prover(Difference(), (1, 1, 1)).margins(
        torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), norm="linf", eps=0.5, method="crown"
    )
    assert float(found.lower[0, 1]) == pytest.approx(0.5, abs=1e-6)


def test_a_tiny_network_against_all_its_pieces() -> None:
    """Two inputs, a fine grid: no bound is above the true least margin, and α-CROWN comes within a tenth."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2)
    y = model(x).argmax(1)
    eps = 0.4
    line = torch.linspace(0.5 - eps, 0.5 + eps, 401)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 1, 1, 2)
    logits = model(grid)
    true = (logits[:, y[0]] - logits[:, 1 - y[0]]).min().item()
    prover = Prover(model, (1, 1, 2))
    found = {m: float(prover.margins(x, y, norm="linf", eps=eps, method=m).least) for m in METHODS[1:]}
    assert found["ibp"] < found["crown"] <= found["alpha-crown"] <= true + 1e-6
    assert found["alpha-crown"] > true - 0.1


@pytest.mark.parametrize("name", sorted(CURVES))
def test_lines_bound_their_curve(name: str) -> None:
    """On narrow, wide and one-sided intervals; and the given curvature is not exceeded."""
    arguments: dict[str, dict[str, float]] = {"clamp": {"min": -0.5, "max": 2.0}, "clip": {"min": 0.1}}
    arguments |= {"clamp_min": {"min": 0.3}, "clamp_max": {"max": 0.3}}
    variants = [arguments.get(name, {})]
    how_many = {
        "gelu": [{}, {"approximate": "tanh"}],
        "softplus": [{}, {"beta": 2.0}],
        "elu": [{}, {"alpha": 0.4}],
    }
    for given in how_many.get(name, variants):
        made_of = CURVES[name](**given)
        curve = Curve((0,), ((1,),), **made_of)
        torch.manual_seed(0)
        low = torch.randn(300, 1).double() * 4
        box = Box(low, low + torch.rand(300, 1).double() ** 4 * 20)
        lines, image = curve.relaxed(box), curve.image(box)
        for share in torch.linspace(0, 1, 501).double():
            x = box.low + share * (box.high - box.low)
            value = curve.value(x)
            assert (lines.low_slope * x + lines.low <= value).all()
            assert (lines.high_slope * x + lines.high >= value).all()
            assert ((image.low <= value) & (value <= image.high)).all()
        x = torch.linspace(-12, 12, 240_001).double()
        second = (curve.value(x + 1e-3) - 2 * curve.value(x) + curve.value(x - 1e-3)) / 1e-6
        smooth = torch.stack([(x - kink).abs() > 2e-3 for kink in (*curve.kinks, 99.0)]).all(0)
        assert float(second[smooth].abs().max()) <= curve.curvature + 1e-6
        slopes = (curve.value(x[1:]) - curve.value(x[:-1])) * 1e4
        assert not curve.monotone or float(slopes.min()) > -1e-8
        # The tangent in the middle of a narrow interval is nearly exact.
        narrow = Box(torch.tensor([[0.7]]).double(), torch.tensor([[0.71]]).double())
        lines = curve.relaxed(narrow)
        gap = (lines.high_slope - lines.low_slope) * 0.705 + lines.high - lines.low
        assert float(gap) < 1e-4


class Refused(nn.Module):
    """Does something that has no bounds."""

    def __init__(self, what: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.what, self.linear = what, nn.Linear(72, 4)
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


def in_place(module: nn.Module, x: Tensor) -> Tensor:
    z = module.linear(x.flatten(1))
    y = functional.relu(z, inplace=True)
    return y + z


@torch.fx.wrap
def tanh(x: Tensor) -> Tensor:
    """Has the name of a function of torch, and is nearly the identity."""
    return x + 1e-6 * x.square()


REFUSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "softmax": lambda m, x: m.linear(x.flatten(1)).softmax(1),
    "round": lambda m, x: m.linear(torch.round(x * 8).flatten(1)),
    "mul": lambda m, x: m.linear((x * x).flatten(1)),
    "mean": lambda m, x: m.linear((x - x.mean(0)).flatten(1)),
    "BatchNorm2d (norm)": lambda m, x: m.linear(m.norm(x).flatten(1)),
    "rand_like": lambda m, x: m.linear((x + torch.rand_like(x)).flatten(1)),
    "draws random numbers": lambda m, x: m.linear((x + torch.rand(())).flatten(1)),
    "a model that draws random": lambda m, x: m.linear((x + 1e-6 * torch.rand(x.shape[-1])).flatten(1)),
    "model that draws": lambda m, x: m.linear(x.flatten(1) + random.random()),
    "traced": lambda m, x: m.linear(x.flatten(1)) if x.sum() > 0 else m.linear(x.flatten(1)) + 1,
    "changed in place": in_place,
    "dropout: dropout that stays": lambda m, x: functional.dropout(m.linear(x.flatten(1)), 1e-4),
    "dropout": lambda m, x: functional.dropout(m.linear(x.flatten(1)), 0.5, training=True),
    "softplus: softplus with": lambda m, x: m.linear(functional.softplus(x, 100.0, 1.0).flatten(1)),
    "tanh": lambda m, x: m.linear(tanh(x).flatten(1)),
    "div with these": lambda m, x: m.linear(torch.div(x, 0.25, rounding_mode="floor").flatten(1)),
    "floordiv": lambda m, x: m.linear((x // 0.25).flatten(1)),
    "leaky_relu: a leaky": lambda m, x: m.linear(functional.leaky_relu(x - 0.5, 2.0).flatten(1)),
    "sort": lambda m, x: m.linear(x.flatten(1).sort(1)[0]),
    "layer_norm": lambda m, x: functional.layer_norm(m.linear(x.flatten(1)), (4,)),
    "output is not logits": lambda _m, x: x,
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_has_no_bounds_is_named(what: str) -> None:
    """In one line, which also names the way that is open to any model."""
    with pytest.raises(InputError) as error:
        Prover(Refused(REFUSED[what]), SHAPE)
    assert what in str(error.value)
    assert "--method smoothing" in str(error.value)


def test_what_a_trace_hides_is_refused() -> None:
    """Hooks, a replaced forward, and a model that is another one on other inputs."""
    hooked = made("dense")
    hooked[1].register_forward_hook(lambda _module, _given, output: output * 2)
    replaced = made("dense")
    replaced[1].forward = lambda x: x[:, :9] * 0  # type: ignore[method-assign]
    for model in (hooked, replaced):
        with pytest.raises(InputError, match="forward"):
            Prover(model, SHAPE)

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * (1.0 if isinstance(x, torch.fx.Proxy) else 1.1)

    x, y = torch.rand(2, *SHAPE), torch.tensor([0, 1])
    with pytest.raises(InputError, match="differ"):
        Prover(Two(), SHAPE).margins(x, y, norm="linf", eps=0.1)


def test_numbers_that_are_none_prove_nothing() -> None:
    """Infinite or missing weights, and logits so large that float32 loses the margin."""
    x, y = torch.full((1, *SHAPE), 0.5), torch.tensor([0])
    for value in (torch.inf, torch.nan, 1e30):
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].weight[:, 0] = value
            model[1].weight[0, 1] = 0.2
        found = Prover(model, SHAPE).margins(x, y, norm="linf", eps=0.01)
        assert not found.proved.any(), value


def test_bad_requests() -> None:
    """Norm, radius and method are checked."""
    prover, x, y = Prover(made("dense"), SHAPE), torch.rand(1, *SHAPE), torch.tensor([0])
    for wrong in ({"norm": "l3"}, {"eps": -0.1}, {"eps": float("nan")}, {"method": "crwon"}):
        with pytest.raises(InputError):
            prover.margins(x, y, **{"norm": "linf", "eps": 0.1, **wrong})


def test_the_batch_changes_nothing() -> None:
    """Bounds of a point are the same in any company, and for networks of the zoo as the model has them."""
    model = build_model("digits-cnn", num_classes=10, in_channels=1, image_size=(8, 8), seed=0)
    prover = Prover(model, (1, 8, 8))
    x = torch.rand(3, 1, 8, 8)
    y = model(x).argmax(1)
    whole = prover.margins(x, y, norm="linf", eps=0.01, method="crown")
    alone = prover.margins(x[1:2], y[1:2], norm="linf", eps=0.01, method="crown")
    assert torch.allclose(whole.lower[1:2], alone.lower, atol=1e-9)
    assert torch.allclose(whole.slack[1:2], alone.slack, rtol=0.5)


@pytest.mark.parametrize("seed", range(12))
def test_windows_give_what_whole_rows_give(seed: int) -> None:
    """For two random convolutions of any stride, padding, dilation and groups, unit by unit."""
    draw = random.Random(seed)

    def convolution(channels: int) -> nn.Conv2d:
        def sides(low: int, high: int) -> tuple[int, int]:
            return draw.randint(low, high), draw.randint(low, high)

        groups = draw.choice([1, 2])
        return nn.Conv2d(channels, 4, sides(1, 3), sides(1, 2), sides(0, 2), sides(1, 2), groups)

    torch.manual_seed(seed)
    middle = draw.choice([nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.3)])
    model = nn.Sequential(convolution(2), middle, convolution(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 2, 9, 10))
    prover = Prover(model.eval(), (2, 9, 10))
    centre = torch.rand(2, 2, 9, 10).double()
    bounds = Bounds.by_intervals(prover.network, Balls(centre, "linf", 0.1)).with_lines()
    index = 3
    shape = prover.network.steps[index].shape
    units = torch.arange(math.prod(shape))
    rows = torch.eye(len(units)).double().view(-1, *shape)
    for sign in (1.0, -1.0):
        for point in (0, 1):
            owner = torch.full_like(units, point)
            narrow = bounds._unit(index, owner, units, sign, 0)
            assert torch.allclose(narrow, bounds.lower(index, sign * rows, owner), atol=1e-8)
