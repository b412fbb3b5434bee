"""What attacks are tried on: small networks trained on digits, and linear classifiers with known optima."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advbench.data import DataSet, TensorLoader
from attacks_pool import pool, verify
from attacks_pool.calling.guard import untouched
from attacks_pool.calling.randomness import isolated_randomness, keyed_generator
from defenses import AT, TrainPlan

Craft = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""A search: adversarial points for a model, images, labels and a seed."""
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
"""The p of the norm that is dual to each norm of a perturbation."""


class Target(NamedTuple):
    """A model in eval mode and test points that it gets right."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def first(self, points: int) -> Target:
        """The target with fewer points."""
        return Target(self.model, self.x[:points], self.y[:points])

    def robust(self, craft: Craft, norm: str, eps: float, seeds: int = 3) -> float:
        """Share of the points that survive, averaged over the seeds.

        What a search does to the model and to global random states is undone: peers re-seed globally,
        call ``model.train()`` and leave gradients behind.
        """
        survivors = 0
        for seed in range(seeds):
            with isolated_randomness(seed, torch.device("cpu")), untouched(self.model):
                x_adv = craft(self.model, self.x, self.y, seed)
            verdict = verify(self.model, self.x, self.y, x_adv, norm=norm, eps=eps)
            survivors += int(verdict.robust.sum())
        return survivors / seeds / len(self.x)


def ours(name: str, eps: float, **knobs: object) -> Craft:
    """The attack of the pool as the benchmark runs it: fooled points are frozen."""
    attack = pool.get(name, eps=eps, **knobs)
    return lambda model, x, y, seed: attack(model, x, y, generator=keyed_generator(seed), early_stop=True)


def trained_target(data: DataSet, *, robust: bool, channels: int = 1) -> Target:
    """A network trained for a second or two, plainly or against PGD at eps 0.2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
    split = type(data.train)(data.train.x.repeat(1, channels, 1, 1), data.train.y)
    attacks = [pool.get("pgd", eps=0.2, training={"steps": 3})] if robust else []
    plan = TrainPlan(epochs=8 if robust else 6, batch_size=64, lr=0.1, eps_warmup=3)
    AT(model).fit(TensorLoader(split, 64, seed=0), attacks, plan=plan)
    x, y = data.test.x.repeat(1, channels, 1, 1), data.test.y
    model.eval().requires_grad_(False)
    right = model(x).argmax(1) == y
    return Target(model, x[right], y[right])


@dataclass(frozen=True)
class Linear:
    """A linear classifier, points near the middle of the box, and the classes that it gives them."""

    model: nn.Sequential
    x: Tensor
    y: Tensor

    @property
    def weight(self) -> Tensor:
        """(K, C·H·W)."""
        return self.model[1].weight.detach()

    def distances(self, norm: str) -> Tensor:
        """(N,) min over k ≠ y of (z_y − z_k) / ‖w_y − w_k‖ in the dual norm: exact inside the box."""
        logits, y = self.model(self.x).detach(), self.y[:, None]
        lead = logits.gather(1, y) - logits
        slope = (self.weight[y] - self.weight).norm(p=DUAL[norm], dim=2)
        return (lead / slope.clamp_min(1e-9)).scatter(1, y, torch.inf).amin(1)


def linear(
    classes: int, shape: tuple[int, int, int], *, points: int = 24, spread: float = 0.1, lead: float = 0.0
) -> Linear:
    """Random weights; images within ``spread`` / 2 of grey; class 0 has ``lead`` more than an equal score."""
    draws = torch.Generator().manual_seed(classes)
    x = 0.5 + spread * (torch.rand(points, *shape, generator=draws) - 0.5)
    layer = nn.Linear(x[0].numel(), classes).requires_grad_(False)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
    layer.bias.copy_(-(x.flatten(1) @ layer.weight.T).mean(0))
    layer.bias[0] += lead
    model = nn.Sequential(nn.Flatten(), layer)
    return Linear(model, x, model(x).argmax(1))


class Cast(nn.Module):
    """A network that computes in float64 or answers in another type, on float32 images.

    Rounding in float32 depends on the batch, and a search magnifies it.
    """

    def __init__(
        self, model: nn.Module, inside: torch.dtype = torch.float64, outside: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.model = deepcopy(model).to(inside)
        self.inside, self.outside = inside, outside

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model(x.to(self.inside))
        return logits.to(self.outside)
