"""MoLA-Router: a shared backbone, low-rank adapters, and a small router that mixes them for each image."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import unfused_attention
from attacks_pool.calling.randomness import isolated_randomness, key_seed
from attacks_pool.errors import InputError, unknown
from attacks_pool.fast.thin import searching
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import because, needs_float32
from defenses.parts.lowrank import (
    AdaptedDefense,
    ConvRouter,
    Route,
    Task,
    task_contrast,
)
from defenses.parts.lowrank.network import Adapt, image_channels
from defenses.registry import register
from defenses.training.processes import whole

Contrasted = Literal["weights", "scores"]
PROJECTED = 32
"""The number of values that P maps scores to, as in the authors' code."""


@register
class MoLARouter(AdaptedDefense):
    """Mixture of low-rank adapters with a router (Zhou et al., arXiv:2406.09679).

    The router g computes from the image x the weights w = softmax g(x) of the adapters; each adapted layer
    (in a CNN: each convolution) becomes W + s·Σ_e w_e·B_e A_e. With f the whole network, router included,

        L = CE(f(x̃), y) + λ·TwD(w(x̃), task),

    where x̃ is crafted on f, through the router. TwD is the supervised contrastive loss on router weights
    with tasks as labels (:func:`defenses.parts.lowrank.task_contrast`). The attacks and clean images are the
    tasks, with an adapter each; a batch is divided equally among them. Inference needs no task labels.

    In the continual regime each stage adds one adapter and one score of the router; after stage 1 the
    backbone and earlier adapters are frozen, while the router continues to train. The paper has no stages.

    Departures: the authors' router is a residual network of 19 convolutions with batch norm; this one is a
    small convolutional network with batch norm only on its last features. (Without any batch norm, weights
    start equal for all images, where TwD has nearly no gradient, and stay equal.) A second optimizer of the
    authors, made for the router, holds the whole network, so that each of their batches takes two steps; here
    one optimizer trains all. Their TwD is on P·g(x), scores before the softmax, with P a learned linear map
    to 32 values (``twd=scores``), with τ = 1, and a mean over pairs instead of anchors. Adapters are
    convolutions to r channels, as in MoLA-Grad. Here every sample reaches every adapter, and no task is known
    at inference, so batch norm is that of the classifier, over the mixed batch. ``docs/tuning.md`` says how
    the defaults were chosen.

    Args:
        model: the classifier.
        rank: r, the rank of an adapter.
        scale: s.
        lambda_twd: λ, weight of TwD.
        temperature: τ of TwD.
        twd: what TwD compares: the ``weights`` w, or P·g(x) of the ``scores`` g(x). P is stored with the
            weights and not used at inference.
        router_width: channels of the router's first convolution.
        router_depth: number of its convolutions with stride 2, each twice as wide as the one before.
        channels: number of image channels; by default that of the classifier's first convolution.
        adapt: ``conv`` adapts convolutions with groups=1, ``all`` also grouped convolutions, linear layers
            and multi-head attention; by default ``conv`` if at least half of these layers are convolutions
            with groups=1, as in ResNets and small CNNs, and ``all`` otherwise, as in ViT and ConvNeXt.
        coverage: the least share of parameters or multiply-adds that adapters must reach; .05 by default.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range, or the network has no convolution.
    """

    info = DefenseInfo(name="mola-router", paper="2406.09679", regimes=("joint", "continual"), grows=True)
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 8,
        scale: float = 4.0,
        lambda_twd: float = 0.1,
        temperature: float = 0.5,
        twd: Contrasted = "weights",
        router_width: int = 16,
        router_depth: int = 1,
        channels: int | None = None,
        adapt: Adapt | None = None,
        coverage: float | None = None,
        seed: int = 0,
    ) -> None:
        if not (math.isfinite(lambda_twd) and lambda_twd >= 0):
            raise InputError(f"lambda_twd={lambda_twd} must be at least 0 and finite")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature={temperature} must be above 0 and finite")
        for name, value, least in (("router_width", router_width, 1), ("router_depth", router_depth, 0)):
            if value < least:
                raise InputError(f"{name}={value} must be at least {least}")
        if twd not in get_args(Contrasted):
            raise unknown("twd", twd, get_args(Contrasted))
        needs_float32("mola-router", model)
        super().__init__(
            model, rank=rank, scale=scale, norms="batch", adapt=adapt, coverage=coverage, seed=seed
        )
        self.lambda_twd, self.temperature, self.twd = lambda_twd, temperature, twd
        self.router_width, self.router_depth, self.channels = router_width, router_depth, channels
        self.router: ConvRouter | None = None
        self.projection: nn.Linear | None = None
        self.mean_weights: dict[str, list[float]] = {}
        self._sums: dict[str, Tensor] = {}

    def add_task(self, task: Task) -> None:
        """Add an adapter, and a score of the router."""
        super().add_task(task)
        if self.twd == "scores":
            self._widen_projection()
        seed = key_seed("router", self.seed, len(self.tasks))
        if self.router is not None:
            self.router.add_expert(seed)
            return
        channels = self.channels or image_channels(self.model)
        like = next(self.model.parameters())
        self.router = ConvRouter(channels, 1, width=self.router_width, depth=self.router_depth, seed=seed).to(
            like
        )

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:  # noqa: ARG002 - the same for all
        """The temperature of TwD and what it compares, with λ = 0."""
        return {} if self.lambda_twd else because("since lambda_twd=0 leaves out TwD", "temperature", "twd")

    def begin(self, stage: Stage) -> None:
        """Add adapters and scores for new attacks, and reset the sums of router weights."""
        super().begin(stage)
        self._sums = {}

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Keep each task's mean router weights of the last epoch, by task text, for the record."""
        self.mean_weights = {
            text: [round(value, 4) for value in (sums / sums.sum()).tolist()]
            for text, sums in self._sums.items()
        }
        self._sums = {}

    def route_for(self, attack: Attack | None) -> Route:  # noqa: ARG002 - the router decides
        """Return the empty route, so that the forward pass uses the router."""
        return Route()

    def craft(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Craft adversarial points against the whole network, router included."""
        with contextlib.nullcontext() if self.router is None else searching(self.router):
            return super().craft(attack, x, y)

    def router_weights(self, x: Tensor) -> Tensor:
        """w (N, E), which sums to 1 for each image; E is 0 before the first stage."""
        return self._scores(x).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), differentiable through the router too."""
        if self.router is None or self.routing.route.chosen:
            return super().forward(x)
        with self.routing.along(Route(weights=self.router_weights(x))):
            return super().forward(x)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """CE(f(x̃), y) + λ·TwD, and its terms."""
        x_adv, labels, tasks = self.task_batch(x, y, stage)
        scores = self._scores(x_adv)
        weights = scores.softmax(1)
        with self.routing.along(Route(weights=weights)):
            ce = self.label_loss(self(x_adv), labels)
        if stage.done >= 1 - 1 / stage.plan.epochs:
            self._add_up(whole(weights.detach()), whole(tasks))
        if self.lambda_twd == 0:
            return {"loss": ce}
        compared = weights if self.projection is None else self.projection(scores.to(self.projection.weight))
        twd = task_contrast(whole(compared), whole(tasks), self.temperature)
        return {"loss": ce + self.lambda_twd * twd, "ce": ce, "twd": twd}

    def overhead(self, x: Tensor) -> float:
        """Ratio of multiply-adds of inference to those of the plain network, for one image like ``x``."""
        with torch.no_grad():
            counts = []
            for network in (self, self.merged(None)):
                with unfused_attention(), FlopCounterMode(display=False) as counter:
                    network(x[:1])
                counts.append(counter.get_total_flops())
        routed, plain = counts
        return float(routed / plain)

    def spec(self) -> dict[str, Any]:
        """Adds each task's mean router weights in the last epoch of the last stage."""
        return {**super().spec(), "router_weights": self.mean_weights}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add adapters and scores for the tasks of ``spec``."""
        super().load_spec(spec)
        self.mean_weights = dict(spec["router_weights"])

    def training_state(self) -> dict[str, Any]:
        """Adds the sums of router weights by task."""
        return {**super().training_state(), "router_sums": dict(self._sums)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores the sums of router weights."""
        super().load_training_state(state)
        self._sums = dict(state["router_sums"])

    def _scores(self, x: Tensor) -> Tensor:
        """g(x) (N, E); E is 0 before the first stage."""
        if self.router is None:
            return x.new_zeros(len(x), 0)
        scores: Tensor = self.router(x).to(x.dtype)
        return scores

    def _widen_projection(self) -> None:
        """Let P take one more score; the columns of the others stay the same."""
        like, old = next(self.model.parameters()), self.projection
        with isolated_randomness(key_seed("projection", self.seed, len(self.tasks)), torch.device("cpu")):
            new = nn.Linear(len(self.tasks), PROJECTED).to(like)
        if old is not None:
            with torch.no_grad():
                new.weight[:, :-1].copy_(old.weight)
                new.bias.copy_(old.bias)
        self.projection = new

    def _add_up(self, weights: Tensor, tasks: Tensor) -> None:
        for place, task in enumerate(self.tasks):
            mine = weights[tasks == place].double().sum(0)
            if len(weights) and bool(mine.any()):
                self._sums[task.text] = self._sums.get(task.text, torch.zeros_like(mine)) + mine
