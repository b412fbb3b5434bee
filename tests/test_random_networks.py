"""Random networks of every operation that has bounds: no sampled value leaves them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.evaluation.certificates.bounding import Bounds
from advbench.evaluation.certificates.boxes import Balls
from advbench.evaluation.certificates.proving import Prover
from attacks_pool import InputError

SHAPE = (2, 5, 5)
EPS = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    *(
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        lambda: nn.LeakyReLU(-0.7),
        lambda: nn.LeakyReLU(0.3),
        nn.PReLU,
    ),
    *(
        nn.GELU,
        lambda: nn.GELU("tanh"),
        nn.Hardswish,
        nn.SiLU,
        nn.Sigmoid,
        nn.Tanh,
        lambda: nn.ELU(2.5),
        nn.SELU,
    ),
    *(lambda: nn.Softplus(3.0, 25.0), nn.ReLU6, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid),
    lambda: nn.Hardtanh(-0.5, 0.2),
]
ARITHMETIC: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(lambda x, c: -2 * x + c, lambda x, c: c - x, lambda x, c: x / -0.3 * c, lambda x, _: x.abs()),
    *(lambda x, c: torch.sub(c, x, alpha=2), lambda x, c: torch.add(x, c, alpha=-3)),
    *(lambda x, _: torch.rsub(x, 0.4), lambda x, _: x.clamp(-0.3, 0.7), lambda x, _: torch.div(x, -2)),
]
SUMS: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(lambda x, y: x + y, lambda x, y: x - y, lambda x, y: torch.add(x, y, alpha=2.5)),
    *(lambda x, y: torch.sub(x, y, alpha=0.2), lambda x, y: x.add(y, alpha=-3)),
]
SHAPES: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: x.transpose(2, 3), lambda x: x[:, :1], lambda x: F.pad(x, (1, 0, 2, 1))),
    *(lambda x: x.flatten(2).view(x.size(0), x.size(1), -1, 1), lambda x: x.mean(3, keepdim=True)),
]


class RandomNetwork(nn.Module):
    """A graph of random operations, some of which read the same result or use one module twice."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw, self.parts, self.plan = random.Random(seed), nn.ModuleList(), []
        self.results = [torch.rand(3, *SHAPE)]
        kinds = [
            *["conv"] * 3,
            *["activation"] * 3,
            "pool",
            "norm",
            "arithmetic",
            *["sum"] * 2,
            "cat",
            "shape",
        ]
        for _ in range(self.draw.randint(3, 9)):
            place = self.draw.randrange(max(0, len(self.results) - 2), len(self.results))
            getattr(self, f"add_{self.draw.choice(kinds)}")(place, self.results[place].shape[1])
        self.head = nn.Linear(self.results[-1].flatten(1).shape[1], 4)
        del self.results

    def add(self, function: Any, *places: int) -> None:
        """Append an operation, unless it does not fit the sizes."""
        try:
            with torch.no_grad():
                result = function(*(self.results[place].clone() for place in places))
        except RuntimeError:
            return
        if isinstance(function, nn.Module):
            self.parts.append(function.eval())
            function = len(self.parts) - 1
        self.plan.append((function, places))
        self.results.append(result)

    def add_conv(self, place: int, channels: int) -> None:
        """A convolution, or one that is there already."""
        draw = self.draw.choice
        known = [one for one in self.parts if isinstance(one, nn.Conv2d) and one.in_channels == channels]
        how = {"stride": draw([1, 1, 2]), "padding": draw([0, 1]), "dilation": draw([1, 1, 2])}
        how |= {"groups": draw([1, 1, channels]), "bias": draw([True, False])}
        if how["padding"]:
            how["padding_mode"] = draw(["zeros", "zeros", "reflect", "circular", "replicate"])
        new = nn.Conv2d(
            channels, draw([1, 2]) * channels if channels < 5 else channels, draw([1, 2, 3]), **how
        )
        self.add(draw(known) if known and self.draw.random() < 0.3 else new, place)

    def add_activation(self, place: int, channels: int) -> None:
        """An activation, with random slopes of PReLU."""
        found = self.draw.choice([*ACTIVATIONS, lambda: nn.PReLU(channels)])()
        for weight in found.parameters():
            nn.init.uniform_(weight, -1.5, 1.0)
        self.add(found, place)

    def add_pool(self, place: int, _channels: int) -> None:
        """Pooling of any kind."""
        draw = self.draw.choice
        size, how = draw([2, 3]), {"padding": draw([0, 1]), "ceil_mode": draw([True, False])}
        average = nn.AvgPool2d(size, draw([1, 2, 3]), **how, count_include_pad=draw([True, False]))
        self.add(draw([nn.MaxPool2d(size, draw([1, 2, 3]), **how), average, nn.AdaptiveAvgPool2d(2)]), place)

    def add_norm(self, place: int, channels: int) -> None:
        """Batch norm with random statistics."""
        norm = nn.BatchNorm2d(channels, affine=self.draw.random() < 0.5)
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.3, 2.0)
        for weight in norm.parameters():
            nn.init.normal_(weight)
        self.add(norm, place)

    def add_arithmetic(self, place: int, channels: int) -> None:
        """An operation with a constant."""
        function, constant = self.draw.choice(ARITHMETIC), torch.randn(channels, 1, 1)
        self.add(lambda x: function(x, constant), place)

    def add_sum(self, place: int, _channels: int) -> None:
        """A sum with a result of the same shape."""
        shape = self.results[place].shape
        others = [other for other, one in enumerate(self.results) if one.shape == shape]
        self.add(self.draw.choice(SUMS), place, self.draw.choice(others))

    def add_cat(self, place: int, _channels: int) -> None:
        """A result beside another."""
        self.add(lambda x, y: torch.cat([x, y], 1), place, self.draw.randrange(len(self.results)))

    def add_shape(self, place: int, _channels: int) -> None:
        """Another shape."""
        self.add(self.draw.choice(SHAPES), place)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        results = [x]
        for function, places in self.plan:
            operation = self.parts[function] if isinstance(function, int) else function
            results.append(operation(*(results[place] for place in places)))
        return self.head(results[-1].flatten(1))


def moved(ball: Balls, count: int) -> Tensor:
    """Images (count, C, H, W) of the ball of one point, many of them in its corners."""
    step = torch.rand(count, *SHAPE, dtype=torch.float64) * 2 - 1
    step[::2] = step[::2].sign()
    step[::5] *= torch.rand_like(step[::5]) < 0.1
    if ball.norm != "linf":
        length = step.flatten(1).norm(p=int(ball.norm[1]), dim=1)
        step = step / length.clamp_min(1e-9).view(-1, 1, 1, 1)
    return (ball.centre + ball.eps * step).clamp(0, 1)


@pytest.mark.quick(r"\d")
@pytest.mark.parametrize("seed", range(60))
def test_no_value_leaves_its_bounds(seed: int) -> None:
    """Of any operation, by intervals and by backward passes; and margins of every method hold."""
    torch.manual_seed(seed)
    model, norm = RandomNetwork(seed).eval(), ("linf", "l2", "l1")[seed % 3]
    x, y = torch.rand(1, *SHAPE), torch.tensor([seed % 4])
    try:
        prover = Prover(model, SHAPE)
    except InputError as error:
        # An activation in place whose input has another reader.
        assert "changed in place" in str(error)  # noqa: PT017 - any other network has bounds
        return
    ball = Balls(x.double(), norm, EPS[norm] * (0.3, 1, 2)[seed // 3 % 3])
    points = moved(ball, 300)
    values: list[Tensor] = []
    bounds = Bounds.by_intervals(prover.network, ball)
    with torch.no_grad():
        better = bounds.refined()
        for index, step in enumerate(prover.network.steps):
            values.append(step.value(*(values[number] for number in step.inputs)) if index else points)
            for box in (bounds.boxes[index], better.boxes[index]):
                assert (values[-1] >= box.low - 1e-9 * (1 + box.low.abs())).all(), (index, step)
                assert (values[-1] <= box.high + 1e-9 * (1 + box.high.abs())).all(), (index, step)
    least = (values[-1][:, y] - values[-1]).amin(0)
    for method in ("ibp", "crown", "alpha-crown"):
        lower = prover.margins(x, y, norm=norm, eps=ball.eps, method=method).lower[0]
        rest = torch.arange(4) != y
        assert (lower[rest] <= least[rest] + 1e-9 * (1 + least[rest].abs())).all(), method
    with torch.no_grad():
        torch.testing.assert_close(model.double()(points.clone()), values[-1])


class Weighted(nn.Module):
    """relu(x) − 3 · relu(x), whose intervals are those of two independent terms."""

    def forward(self, x: Tensor) -> Tensor:
        """Values (N, D)."""
        found = x.flatten(1)
        return torch.add(found.relu(), found.relu(), alpha=-3)


def test_a_weighted_sum_by_hand() -> None:
    """[0.4, 0.6] − 3 · [0.4, 0.6] = [−1.4, −0.6]."""
    prover = Prover(Weighted(), (1, 1, 2))
    ball = Balls(torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64), "linf", 0.1)
    box = Bounds.by_intervals(prover.network, ball).boxes[-1]
    torch.testing.assert_close(box.low, torch.full_like(box.low, -1.4))
    torch.testing.assert_close(box.high, torch.full_like(box.high, -0.6))


def test_slopes_that_no_output_depends_on() -> None:
    """α-CROWN of a network whose activation is not used for the logits."""

    class Beside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Logits (N, 4)."""
            found = x.flatten(1)
            return torch.add(found[:, :4], 0 * found[:, 4:8].relu())

    margins = Prover(Beside(), SHAPE).margins(
        torch.rand(2, *SHAPE), torch.tensor([0, 1]), norm="linf", eps=0.1, method="alpha-crown"
    )
    assert torch.isfinite(margins.lower[0, 1:]).all()
