"""DDeR: experts and a router for each stage, and a sentinel that chooses among the routers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import count_passes, evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import at_least_one, needs_attack, not_negative, single_stage
from defenses.parts.encoding import penultimate
from defenses.parts.lowrank import AdaptedDefense, ConvRouter, Route, Task, adapted
from defenses.parts.lowrank.network import Adapt, image_channels
from defenses.registry import register
from defenses.training.processes import current, whole
from defenses.training.stage import once_more
from defenses.training.tally import Report, Tally


@register
class DDeR(AdaptedDefense):
    """Dynamic dual-level defense routing (Wang, Wang and Qian, arXiv:2509.21392).

    Stage t adds m low-rank experts and a router g_t over all experts so far. A sentinel a, on features φ(x)
    of the backbone without experts, chooses among the routers. With E experts, R routers and softmax over
    each,

        w_t(x) = softmax g_t(x),   q(x) = softmax a(φ(x)),   w(x) = Σ_t q_t(x) · w_t(x),
        layer(x) = W x + s · Σ_e w_e(x) B_e A_e x,

    where w_t is 0 for experts of stages after t. x̃ is crafted on the whole network, through w. In stage t it
    passes through the router g_t alone, which learns independently of the others:

        L = CE(f_{w_t}(x̃), y) + λ · 1/t · (CE(a(φ(x̃)), t) + Σ_{j<t} CE(a(μ_j + σ_j · ε), j)),   ε ~ N(0, I).

    μ_j and σ_j are the mean and the standard deviation of φ over the attacked images of stage j, measured at
    its end. These pseudo-tasks take the place of data of earlier stages, none of which are stored. The
    backbone is trained in stage 1 and then frozen, as are the experts and routers of earlier stages; the
    sentinel continues to train from stage 2 on. A defense that was loaded only from its weights begins anew.

    From the paper's abstract, all that we could read: experts and routers that each select and combine
    experts, a new router for each stage, a sentinel network that guides their selection, and pseudo-tasks
    that use differences in distribution in place of stored data. Ours: all formulas; experts of low rank in
    the layers of the classifier; m new experts a stage; routers and experts over images, not over features;
    the soft choice of the sentinel, through which attacks differentiate; normal pseudo-tasks; a linear
    sentinel. φ(x) is the input of the last linear layer, scaled to the length √D.

    ``report`` gives the share of x̃ that the sentinel assigns to their own stage while it trains, by stage.

    Args:
        model: the classifier.
        experts: m.
        weight: λ; at 0 the sentinel does not learn, and chooses all routers alike.
        rank: the rank of an expert.
        scale: s.
        router_width: channels of a router's first convolution.
        router_depth: number of its convolutions with stride 2, each twice as wide as the one before.
        channels: number of image channels; by default that of the classifier's first convolution.
        adapt: the layers with experts, see `MoLARouter`.
        coverage: the least share of the network that experts must reach, see `MoLARouter`.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range.
    """

    info = DefenseInfo(name="dder", paper="2509.21392", regimes=("continual",), grows=True)
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        experts: int = 2,
        weight: float = 1.0,
        rank: int = 8,
        scale: float = 4.0,
        router_width: int = 16,
        router_depth: int = 1,
        channels: int | None = None,
        adapt: Adapt | None = None,
        coverage: float | None = None,
        seed: int = 0,
    ) -> None:
        at_least_one(experts=experts, router_width=router_width)
        not_negative(weight=weight, router_depth=router_depth)
        super().__init__(
            model, rank=rank, scale=scale, norms="batch", adapt=adapt, coverage=coverage, seed=seed
        )
        self.experts, self.weight, self.channels = experts, weight, channels
        self.router_width, self.router_depth = router_width, router_depth
        self.routers = nn.ModuleList()
        self.sentinel: nn.Linear | None = None
        self._measured: list[tuple[Tensor, Tensor]] = []
        """μ_j and σ_j (D,) of each finished stage."""
        self._tally = Tally()

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Require exactly one attack.

        Raises:
            InputError: there is no attack, or more than one.
        """
        super().check_attacks(attacks)
        needs_attack(self.info.name, attacks)

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """``weight`` where there is one stage."""
        return single_stage(stages, "weight")

    def begin(self, stage: Stage) -> None:
        """Add experts and a router; from the second stage on, freeze all others."""
        if stage.index > 1:
            self.requires_grad_(False)
        elif len(self.routers):
            # Loaded from weights alone, without what is measured in training.
            for module in adapted(self.model):
                module.remove_tasks()
            self.tasks, self.routers, self.sentinel, self._measured = [], nn.ModuleList(), None, []
        self._grow(None if not self._measured else len(self._measured[0][0]))
        for expert in range(len(self.tasks) - self.experts, len(self.tasks)):
            self._adapter(expert).requires_grad_(True)
        self.routers[-1].requires_grad_(True)
        if self.sentinel is not None:
            self.sentinel.requires_grad_(True)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``sentinel``, without λ."""
        x_adv = self.craft(stage.attacks[0], x, y)
        with self.routing.along(Route(weights=self._weights(x_adv, stage.index - 1))):
            ce = self.label_loss(self(x_adv), y)
        if self.sentinel is None or self.weight == 0:
            return {"loss": ce}
        with torch.no_grad(), evaluation_mode(self):
            features = self.features(x_adv)
        self.passes.forwards += len(x)
        answers = self.sentinel(features)
        stages = torch.full_like(y, stage.index - 1)
        right = whole((answers.detach().argmax(1) == stages).float())
        self._tally.add(stage.index, {"right": float(right.sum()), "images": len(right)})
        losses = [F.cross_entropy(answers, stages)]
        part = current(len(x))
        for number, (mean, spread) in enumerate(self._measured):
            noise = torch.randn(part.total, len(mean), generator=self.generator)[part.slice]
            pseudo = mean.to(features) + spread.to(features) * noise.to(features)
            losses.append(F.cross_entropy(self.sentinel(pseudo), torch.full_like(y, number)))
        sentinel = torch.stack(losses).mean()
        return {"loss": ce + self.weight * sentinel, "ce": ce, "sentinel": sentinel}

    def end(self, stage: Stage) -> None:
        """Measure μ and σ of this stage's attacked images."""
        key = key_seed("dder", self.seed, stage.index)
        draws, self.generator = self.generator, keyed_generator(key)
        found = []
        try:
            with isolated_randomness(key, self.device), count_passes(self) as passes:
                for x, y in once_more(stage, self.device):
                    x_adv = self.craft(stage.attacks[0], x, y)
                    with torch.no_grad(), evaluation_mode(self):
                        found.append(self.features(x_adv).cpu())
                    passes.forwards += len(x)
        finally:
            self.generator = draws
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        features = torch.cat(found)
        self._measured.append((features.mean(0), features.std(0, correction=0)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K), differentiable through routers and sentinel too."""
        if not len(self.routers) or self.routing.route.chosen:
            return super().forward(x)
        with self.routing.along(Route(weights=self.router_weights(x))):
            return super().forward(x)

    def features(self, x: Tensor) -> Tensor:
        """φ(x) (N, D), of length √D."""
        with self.routing.along(Route()):
            found = penultimate(self.model, x)
        scaled: Tensor = F.normalize(found, dim=1) * found.shape[1] ** 0.5
        return scaled

    def choice(self, x: Tensor) -> Tensor:
        """q(x) (N, R), which sums to 1 for each image."""
        if self.sentinel is None:
            return x.new_ones(len(x), len(self.routers))
        found: Tensor = self.sentinel(self.features(x)).to(x.dtype).softmax(1)
        return found

    def router_weights(self, x: Tensor) -> Tensor:
        """w(x) (N, E), which sums to 1 for each image; E is 0 before the first stage."""
        if not len(self.routers):
            return x.new_zeros(len(x), 0)
        each = torch.stack([self._weights(x, number) for number in range(len(self.routers))], 1)
        return (self.choice(x)[:, :, None] * each).sum(1)

    def route_for(self, attack: Attack | None) -> Route:  # noqa: ARG002 - routers and sentinel decide
        """Return the empty route, so that the forward pass uses w."""
        return Route()

    def train(self, mode: bool = True) -> Self:
        """Set train mode, except for the routers of earlier stages."""
        super().train(mode)
        for router in list(self.routers)[:-1]:
            router.eval()
        return self

    def report(self) -> Report:
        """The share of attacked images that the sentinel assigns to their own stage."""
        ratios = {"sentinel_right": ("right", "images")}
        table = self._tally.by_stage(ratios)
        return {**self._tally.ratios(ratios), "sentinel_by_stage": table} if table else {}

    def spec(self) -> dict[str, Any]:
        """Adds the number of routers, and of the features that the sentinel sees."""
        width = 0 if self.sentinel is None else self.sentinel.in_features
        return {**super().spec(), "routers": len(self.routers), "features": width}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add experts, routers and the sentinel."""
        self.load_coverage(spec)
        for _ in range(spec["routers"] - len(self.routers)):
            self._grow(spec["features"] or None)

    def training_state(self) -> dict[str, Any]:
        """Adds μ and σ of each stage, and what is reported."""
        return {**super().training_state(), "measured": list(self._measured), "tally": self._tally.state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores them."""
        super().load_training_state(state)
        self._measured = [(mean, spread) for mean, spread in state["measured"]]
        self._tally.load(state["tally"])

    def _weights(self, x: Tensor, number: int) -> Tensor:
        """w_t(x) (N, E) of one router, 0 for later experts."""
        found: Tensor = self.routers[number](x).to(x.dtype).softmax(1)
        return F.pad(found, (0, len(self.tasks) - found.shape[1]))

    def _grow(self, features: int | None) -> None:
        """Add experts and a router; with a second router, a sentinel, or one more output of it."""
        for _ in range(self.experts):
            self.add_task(Task.of_family(f"expert {len(self.tasks) + 1}"))
        like = next(self.model.parameters())
        kind = torch.promote_types(like.dtype, torch.float32)
        router = ConvRouter(
            self.channels or image_channels(self.model),
            len(self.tasks),
            width=self.router_width,
            depth=self.router_depth,
            seed=key_seed("router", self.seed, len(self.routers)),
        )
        self.routers.append(router.to(like.device, kind))
        if len(self.routers) == 1 or features is None:
            return
        old = self.sentinel
        with isolated_randomness(0, torch.device("cpu")):
            self.sentinel = nn.Linear(features, len(self.routers)).to(like.device, kind)
        with torch.no_grad():
            # Zeros: the first sentinel chooses all routers alike.
            for new in self.sentinel.parameters():
                new.zero_()
            if old is not None:
                self.sentinel.weight[:-1].copy_(old.weight)
                self.sentinel.bias[:-1].copy_(old.bias)
