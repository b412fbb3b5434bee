"""Bounds of networks contain what sampling finds, are exact where known, and never prove too much."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.evaluation.certificates.bounding import Bounds
from advbench.evaluation.certificates.boxes import NORMS, Ball
from advbench.evaluation.certificates.proving import METHODS, Prover
from advbench.models.normalize import Normalize

SHAPE = (2, 6, 6)
SAMPLED = 10_000


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


def sampled(ball: Ball, count: int = SAMPLED) -> Tensor:
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


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_no_sampled_output_leaves_its_bounds(kind: str, norm: str) -> None:
    """Of any step, by intervals and by backward passes; and the margins' bounds hold for every method."""
    model = made(kind, 1.5)
    prover = Prover(model, SHAPE)
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    whole = Ball(x.double(), norm, EPS[norm])
    bounds = Bounds.by_intervals(prover.network, whole)
    better = bounds.refined(steps=3)
    margins = {m: prover.margins(x, y, norm=norm, eps=EPS[norm], method=m).lower for m in METHODS}
    for point in (0, 1):
        found = [sampled(Ball(whole.centre[point : point + 1], norm, EPS[norm]))]
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
