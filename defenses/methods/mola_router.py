"""MoLA-Router: a shared backbone, low-rank adapters, and a small router that mixes them for each image."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import key_seed
from attacks_pool.errors import InputError
from attacks_pool.fast.thin import searching
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import needs_float32
from defenses.parts.lowrank import (
    AdaptedConv2d,
    AdaptedDefense,
    ConvRouter,
    Route,
    Task,
    adapted,
    task_contrast,
)
from defenses.registry import register


@register
class MoLARouter(AdaptedDefense):
    """Mixture of low-rank adapters with a router (Zhou et al., arXiv:2406.09679).

    The router g says from the image x how much of each adapter it gets: w = softmax g(x), and each
    convolution becomes W + s·Σ_e w_e·B_e A_e. With f the whole, router included,

        L = CE(f(x̃), y) + λ·TwD(w(x̃), task),

    x̃ crafted on f, through the router; TwD is the supervised contrastive loss on router weights with the
    task as label (:func:`defenses.parts.lowrank.task_contrast`). Tasks are the attacks and clean
    images, an adapter each; a batch is shared out among them in equal parts. Nothing is told at inference.

    In the continual regime each stage adds one adapter and one score of the router; after stage 1 the
    backbone and earlier adapters are frozen, while the router trains on. The paper knows no stages.

    Departures: the authors' router is a residual network of 19 convolutions with batch norm, ours a small
    convolutional one with batch norm on its last features alone, and theirs has an optimizer of its own.
    (Without any the weights start equal for all images, where the gradient of TwD is nearly 0, and stay so.)
    Their code takes the mean of TwD over pairs instead of over anchors, and τ = 1. Adapters are thin
    convolutions, as in MoLA-Grad. Every sample reaches every adapter here, and no task is known at inference,
    so that batch norm is that of the classifier, over the mixed batch. How the defaults were chosen is in
    ``docs/tuning.md``.

    Args:
        model: the classifier, with a convolution.
        rank: r, the rank of an adapter.
        scale: s.
        lambda_twd: λ, weight of TwD.
        temperature: τ of TwD.
        router_width: channels of the router's first convolution.
        router_depth: its convolutions of stride 2, each twice as wide as the one before.
        channels: of the images; by default what the classifier's first convolution takes.
        seed: determines every draw.

    Raises:
        InputError: a parameter out of range, or a network without a convolution.
    """

    info = DefenseInfo(name="mola-router", paper="2406.09679", regimes=("joint", "continual"), grows=True)

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 8,
        scale: float = 4.0,
        lambda_twd: float = 0.1,
        temperature: float = 0.5,
        router_width: int = 16,
        router_depth: int = 1,
        channels: int | None = None,
        seed: int = 0,
    ) -> None:
        if not (math.isfinite(lambda_twd) and lambda_twd >= 0):
            raise InputError(f"lambda_twd={lambda_twd} must be at least 0 and finite")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature={temperature} must be above 0 and finite")
        for name, value, least in (("router_width", router_width, 1), ("router_depth", router_depth, 0)):
            if value < least:
                raise InputError(f"{name}={value} must be at least {least}")
        needs_float32("mola-router", model)
        super().__init__(model, rank=rank, scale=scale, norms="batch", seed=seed)
        self.lambda_twd, self.temperature = lambda_twd, temperature
        self.router_width, self.router_depth, self.channels = router_width, router_depth, channels
        self.router: ConvRouter | None = None
        self.mean_weights: dict[str, list[float]] = {}
        self._sums: dict[str, Tensor] = {}

    def add_task(self, task: Task) -> None:
        """An adapter, and a score of the router."""
        super().add_task(task)
        seed = key_seed("router", self.seed, len(self.tasks))
        if self.router is not None:
            self.router.add_expert(seed)
            return
        first = next(module for module in adapted(self.model) if isinstance(module, AdaptedConv2d))
        channels = self.channels or first.in_channels
        self.router = ConvRouter(channels, 1, width=self.router_width, depth=self.router_depth, seed=seed).to(
            first.weight
        )

    def begin(self, stage: Stage) -> None:
        """Adapters and scores for new attacks; router weights are summed anew."""
        super().begin(stage)
        self._sums = {}

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Keep the mean router weights of each task of the last epoch, by the task's text, for the record."""
        self.mean_weights = {
            text: [round(value, 4) for value in (sums / sums.sum()).tolist()]
            for text, sums in self._sums.items()
        }
        self._sums = {}

    def route_for(self, attack: Attack | None) -> Route:  # noqa: ARG002 - the router decides
        """Nothing: the forward pass asks the router."""
        return Route()

    def craft(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial points against the whole, router included."""
        with contextlib.nullcontext() if self.router is None else searching(self.router):
            return super().craft(attack, x, y)

    def router_weights(self, x: Tensor) -> Tensor:
        """w (N, E), which sum to 1 for each image; E is 0 before the first stage."""
        if self.router is None:
            return x.new_zeros(len(x), 0)
        weights: Tensor = self.router(x).to(x.dtype).softmax(1)
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), differentiable through the router too."""
        if self.router is None or self.routing.route.chosen:
            return super().forward(x)
        with self.routing.along(Route(weights=self.router_weights(x))):
            return super().forward(x)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """CE(f(x̃), y) + λ·TwD, and its terms."""
        x_adv, labels, tasks = self.task_batch(x, y, stage)
        weights = self.router_weights(x_adv)
        with self.routing.along(Route(weights=weights)):
            ce = F.cross_entropy(self(x_adv), labels)
        if stage.done >= 1 - 1 / stage.plan.epochs:
            self._add_up(weights.detach(), tasks)
        if self.lambda_twd == 0:
            return {"loss": ce}
        twd = task_contrast(weights, tasks, self.temperature)
        return {"loss": ce + self.lambda_twd * twd, "ce": ce, "twd": twd}

    def overhead(self, x: Tensor) -> float:
        """Multiply-adds of an image's inference over those of the plain network, for images like ``x``."""
        with torch.no_grad():
            counts = []
            for network in (self, self.merged(None)):
                with FlopCounterMode(display=False) as counter:
                    network(x[:1])
                counts.append(counter.get_total_flops())
        routed, plain = counts
        return float(routed / plain)

    def spec(self) -> dict[str, Any]:
        """Adds the mean router weights of each task in the last stage's last epoch."""
        return {**super().spec(), "router_weights": self.mean_weights}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Adapters and scores for the tasks of ``spec``."""
        super().load_spec(spec)
        self.mean_weights = dict(spec["router_weights"])

    def training_state(self) -> dict[str, Any]:
        """Adds the sums of router weights, by task."""
        return {**super().training_state(), "router_sums": dict(self._sums)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes up the sums."""
        super().load_training_state(state)
        self._sums = dict(state["router_sums"])

    def _add_up(self, weights: Tensor, tasks: Tensor) -> None:
        for place, task in enumerate(self.tasks):
            mine = weights[tasks == place].double().sum(0)
            if len(weights) and bool(mine.any()):
                self._sums[task.text] = self._sums.get(task.text, torch.zeros_like(mine)) + mine
