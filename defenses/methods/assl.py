"""ASSL: semantic spaces found without attack labels, each with a low-rank expert, on a share of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from attacks_pool.errors import InputError, unknown
from defenses.base import Batches, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, at_least_one, because
from defenses.parts.encoding import penultimate
from defenses.parts.halves import enter_part, forget_steps
from defenses.parts.lowrank import AdaptedDefense, Route, Task, adapted
from defenses.parts.lowrank.layer import AdaptedLayer
from defenses.parts.lowrank.network import Adapt
from defenses.parts.mixing import craft_batch
from defenses.parts.pool import PoolBatches, gathered, keys_of, outliers, sparseness, spread
from defenses.registry import register
from defenses.training.plan import TrainPlan
from defenses.training.stage import once_more
from defenses.training.tally import Report, Table

Need = Literal["easy", "hard", "random"]
Select = Literal["both", "density", "random"]
GROWS_AFTER = 1 / 3
"""The share of the backbone part after which the second half of the pool is chosen."""

FAR = 10.0
"""A coordinate of centres that no image is near."""


@register
class ASSL(AdaptedDefense):
    """Adaptive semantic space learning (Zhou et al., arXiv:2404.04949), for classifiers under attack.

    A share of the images is chosen, in two redistributions, and nothing else is read afterwards. With e(x)
    the penultimate features of f without adapters, scaled to length 1, B = round(share·N) and k-means++ cells
    of e over all images,

        r_i = the distance of e(x_i) to its k-th neighbour in its cell;   r_i > Q3 + 1.5·IQR is dropped,
        redistribution 1: B/2 images, equally many of each of C cells, the largest log r_i + Gumbel noise,
        redistribution 2: B/2 of the rest, those of lowest (``easy``) or highest (``hard``) CE(f(x̃_i), y_i).

    The backbone part of a stage is adversarial training; redistribution 2 takes place after a third of it.
    Then the backbone is frozen. k-means of e over the pool, clean and attacked, gives the centres μ_k of the
    semantic spaces, and each space gets a low-rank expert:

        w(x) = softmax_k(−‖e(x) − μ_k‖² / τ),   or 1 for the nearest centre and 0 for others (``hard``),
        layer(x) = W x + s·Σ_k w_k(x) B_k A_k x,   L = CE(z, y),   x̃ crafted through w.

    From the paper, which adapts language models: clustering of embeddings, a low-rank expert for each
    cluster, density-aware and need-aware redistribution, and a tenth of the data. Ours: all formulas, the
    parts, soft routing by default (the paper uses the nearest cluster), and that a stage takes as many steps
    as with all images. Batch norm has frozen statistics while experts train. Both parts have a whole
    learning-rate schedule. A network without a linear layer is embedded by its logits. A further stage
    chooses anew.

    ``report`` gives the images embedded, used and dropped, the share of attacked pool images whose space
    is another than the clean image's, and the spaces by attack and by class, as shares of the pool.

    Args:
        model: the classifier.
        share: the share of the images to train on.
        cells: C.
        neighbours: k.
        select: ``both`` redistributions, ``density`` (redistribution 1 chooses all B images) or ``random``.
        need: what redistribution 2 keeps.
        experts: the number of semantic spaces.
        temperature: τ.
        hard: route each image to the nearest space alone.
        rank: rank of an expert.
        scale: s.
        backbone_share: the share of a stage that trains the backbone.
        expert_rate: the factor on the learning rate of experts.
        adapt: the layers with experts, see `MoLARouter`.
        coverage: the least share of the network that experts must reach, see `MoLARouter`.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range.
    """

    info = DefenseInfo(name="assl", paper="2404.04949", regimes=("joint",))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        share: float = 0.1,
        cells: int = 10,
        neighbours: int = 5,
        select: Select = "both",
        need: Need = "easy",
        experts: int = 4,
        temperature: float = 0.1,
        hard: bool = False,
        rank: int = 8,
        scale: float = 4.0,
        backbone_share: float = 0.6,
        expert_rate: float = 0.3,
        adapt: Adapt | None = None,
        coverage: float | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"share={share} must be above 0 and at most 1")
        if not 0 < backbone_share < 1:
            raise InputError(f"backbone_share={backbone_share} must be above 0 and below 1")
        at_least_one(cells=cells, neighbours=neighbours, experts=experts)
        above_zero(temperature=temperature, expert_rate=expert_rate)
        for name, value, kind in (("select", select, Select), ("need", need, Need)):
            if value not in get_args(kind):
                raise unknown(name, value, get_args(kind))
        super().__init__(
            model, rank=rank, scale=scale, norms="batch", adapt=adapt, coverage=coverage, seed=seed
        )
        self.share, self.cells, self.neighbours = share, cells, neighbours
        self.select, self.need, self.experts = select, need, experts
        self.temperature, self.hard = temperature, hard
        self.backbone_share, self.expert_rate = backbone_share, expert_rate
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(0, 0))
        self._batches: PoolBatches | None = None
        self._chosen: list[bytes] = []
        self._dropped: list[bytes] = []
        self._wanted = 0
        self._found: dict[str, Any] = {}
        self._frozen: list[str] = []
        """The names of the parameters that were frozen with the backbone."""

    @property
    def divided(self) -> bool:
        """Whether the semantic spaces are found and the backbone is frozen."""
        return bool(self.centres.any())

    def stage_batches(self, data: Batches) -> Batches:
        """The batches of ``data`` until a pool is chosen, then those of the pool."""
        self._batches = PoolBatches(data, key_seed("assl", self.seed))
        return self._batches

    def begin(self, stage: Stage) -> None:
        """Choose the first half of the pool, and add experts without effect."""
        for name, parameter in self.model.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(True)
        self._frozen = []
        self.centres = self.centres.new_zeros(0, 0)
        for module in adapted(self.model):
            if isinstance(module, AdaptedLayer):
                module.remove_tasks()
        self.tasks = []
        self._add_experts()
        self._redistribute_by_density(stage)

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:  # noqa: ARG002 - the same for all
        """Parameters of a redistribution or of a kind of routing that is not in use."""
        found = {}
        if self.select != "both":
            found = because(f"since select={self.select} leaves out redistribution 2", "need")
        if self.select == "random":
            found |= because("since select=random leaves out redistribution 1", "cells", "neighbours")
        if self.hard:
            found |= because("since hard=true routes to the nearest space alone", "temperature")
        return found

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train the backbone on one batch or, after its share of the stage, the experts."""
        part = self.backbone_share
        if len(self._chosen) < self._wanted and stage.done >= GROWS_AFTER * part:
            self._redistribute_by_need(stage)
        if not self.divided and stage.done >= part:
            self._divide(stage)
            forget_steps(optimizer)
            self.part += 1
            self.train()
        enter_part(optimizer, stage.plan, stage.done, *((part, 1.0) if self.divided else (0.0, part)))
        if self.divided:
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] *= self.expert_rate
        return super().step(x, y, stage, optimizer)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f(x̃), y)."""
        x_adv, _ = craft_batch(
            self.craft, stage.attacks, x, y, mix="split", generator=self.generator, predict=self
        )
        return self.label_loss(self(x_adv), y)

    def end(self, stage: Stage) -> None:
        """Describe the spaces on the pool, and drop it."""
        pool = self._batches
        if self.divided and pool is not None and pool.x is not None and pool.y is not None:
            self._describe(pool.x.to(self.device), pool.y.to(self.device), stage)
        self._batches, self._chosen, self._dropped = None, [], []

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the backbone, or through the experts, differentiable through w too."""
        if not self.divided or self.routing.route.chosen:
            return super().forward(x)
        with self.routing.along(Route(weights=self.router_weights(x))):
            return super().forward(x)

    def embed(self, x: Tensor) -> Tensor:
        """e(x) (N, D), of length 1."""
        with self.routing.along(Route()):
            return F.normalize(penultimate(self.model, x), dim=1)

    def router_weights(self, x: Tensor) -> Tensor:
        """w (N, experts), which sums to 1 for each image; (N, 0) before the spaces are found."""
        if not self.divided:
            return x.new_zeros(len(x), 0)
        e = self.embed(x)
        away = (e[:, None] - self.centres.to(e)).square().sum(2)
        if self.hard:
            return F.one_hot(away.argmin(1), self.experts).to(x.dtype)
        return (-away / self.temperature).softmax(1).to(x.dtype)

    def route_for(self, attack: Attack | None) -> Route:  # noqa: ARG002 - w decides
        """Return the empty route, so that the forward pass uses w."""
        return Route()

    def train(self, mode: bool = True) -> Self:
        """Set train mode; batch norm has frozen statistics while experts train."""
        nn.Module.train(self, mode)
        if mode and self.divided:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def report(self) -> Report:
        """Counts of images, the share of flips, and the spaces by attack and by class."""
        return dict(self._found)

    def spec(self) -> dict[str, Any]:
        """Adds the shape of the centres."""
        return {**super().spec(), "centres": list(self.centres.shape)}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add experts and centres."""
        super().load_spec(spec)
        self.centres = self.centres.new_zeros(*spec["centres"])

    def training_state(self) -> dict[str, Any]:
        """Adds the pool while a stage trains, and what is reported."""
        pool = self._batches
        held = None if pool is None or pool.x is None else (pool.x, pool.y, pool.sizes)
        more = {
            "pool": held,
            "chosen": [key.hex() for key in self._chosen],
            "dropped": [key.hex() for key in self._dropped],
            "wanted": self._wanted,
            "found": self._found,
            "part": self.part,
            "frozen": list(self._frozen),
        }
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores them; the backbone is frozen again if the spaces are found."""
        super().load_training_state(state)
        if state["pool"] is not None and self._batches is not None:
            self._batches.choose(*state["pool"])
        self._chosen = [bytes.fromhex(key) for key in state["chosen"]]
        self._dropped = [bytes.fromhex(key) for key in state["dropped"]]
        self._wanted, self._found, self.part = state["wanted"], dict(state["found"]), state["part"]
        self._frozen = list(state["frozen"])
        for name, parameter in self.model.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(False)

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer | None:
        """An optimizer of the backbone and the experts, also where a stage resumes with a frozen backbone."""
        named = self.model.named_parameters()
        trained = [one for name, one in named if one.requires_grad or name in self._frozen]
        return plan.make_optimizer(trained) if trained else None

    def _add_experts(self) -> None:
        for number in range(self.experts):
            self.add_task(Task.of_family(f"space {number + 1}"))

    def _all(self, stage: Stage) -> Any:
        """One pass over all clean images of the stage."""
        assert self._batches is not None
        return once_more(replace(stage, data=self._batches.data), self.device)

    @contextlib.contextmanager
    def _alone(self, stage: Stage, what: str) -> Iterator[None]:
        """Draw random numbers that do not depend on the batch being trained on, in any process."""
        before, key = self.generator, key_seed("assl", self.seed, stage.index, what)
        self.generator = keyed_generator(key)
        try:
            with isolated_randomness(key, self.device):
                yield
        finally:
            self.generator = before

    def _redistribute_by_density(self, stage: Stage) -> None:
        from sklearn.cluster import KMeans

        assert self._batches is not None
        found: dict[bytes, Tensor] = {}
        sizes: list[int] = []
        with self._alone(stage, "density"):
            with torch.no_grad(), evaluation_mode(self):
                for x, _ in self._all(stage):
                    sizes.append(len(x))
                    found.update(zip(keys_of(x), self.embed(x).cpu(), strict=True))
                    self.passes.forwards += len(x)
            keys, seed = list(found), key_seed("assl", self.seed, stage.index) % 2**32
            self._wanted = min(max(round(self.share * len(keys)), 1), len(keys))
            half = self._wanted if self.select != "both" else (self._wanted + 1) // 2
            left_out = np.zeros(len(keys), dtype=bool)
            if self.select == "random":
                rows = np.random.default_rng(seed).permutation(len(keys))[:half].tolist()
            else:
                e = torch.stack(list(found.values())).double().numpy()
                cells = min(self.cells, len(keys))
                labels = KMeans(cells, n_init=1, random_state=seed).fit_predict(e)
                r = sparseness(e, labels.astype(np.int64), self.neighbours)
                left_out = outliers(r)
                rows = spread(r, labels.astype(np.int64), left_out, half, seed)
            self._chosen = [keys[row] for row in rows]
            self._dropped = [keys[row] for row in np.flatnonzero(left_out)]
            self._batches.choose(*gathered(self._all(stage), self._chosen), sizes)
        self.centres = torch.zeros(self.experts, len(next(iter(found.values()))), device=self.device)
        counts = {"images_embedded": len(keys), "images_used": self._wanted}
        self._found = {**counts, "images_dropped": len(self._dropped)}

    def _redistribute_by_need(self, stage: Stage) -> None:
        """Attack the images outside the pool once, and add those that are needed most."""
        pool = self._batches
        assert pool is not None
        assert pool.x is not None
        assert pool.y is not None
        taken, dropped = set(self._chosen), set(self._dropped)
        losses: dict[bytes, float] = {}
        with self._alone(stage, "need"):
            for x, y in self._all(stage):
                keys = keys_of(x)
                rows = [row for row, key in enumerate(keys) if key not in taken]
                if rows:
                    needs = self._needs(x[rows], y[rows], stage)
                    losses.update(zip((keys[row] for row in rows), needs, strict=True))
            sign = 1 if self.need == "easy" else -1
            if self.need == "random":
                draws = np.random.default_rng(key_seed("need", self.seed) % 2**32).random(len(losses))
                losses = dict(zip(losses, draws.tolist(), strict=True))
            # Sparse images that were dropped come last, if the others are too few.
            order = sorted(losses, key=lambda key: (key in dropped, sign * losses[key]))
            more = order[: self._wanted - len(self._chosen)]
            if more:
                x, y = gathered(self._all(stage), more)
                pool.choose(torch.cat([pool.x, x]), torch.cat([pool.y, y]), pool.sizes)
        self._chosen += more
        self._wanted = len(self._chosen)

    def _needs(self, x: Tensor, y: Tensor, stage: Stage) -> list[float]:
        """CE(f(x̃), y) of each image, in eval mode."""
        with evaluation_mode(self):
            x_adv = self._attacked(x, y, stage)
            with torch.no_grad():
                losses: list[float] = F.cross_entropy(self(x_adv).float(), y, reduction="none").tolist()
        return losses

    def _attacked(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        x_adv, _ = craft_batch(
            self.craft, stage.attacks, x, y, mix="split", generator=self.generator, predict=self
        )
        return x_adv

    def _divide(self, stage: Stage) -> None:
        """Freeze the backbone, and find the centres of the spaces on the pool, clean and attacked."""
        from sklearn.cluster import KMeans

        pool = self._batches
        assert pool is not None
        assert pool.x is not None
        assert pool.y is not None
        self._freeze()
        size = max(pool.sizes)
        points = []
        with self._alone(stage, "divide"), evaluation_mode(self):
            for x, y in zip(torch.split(pool.x, size), torch.split(pool.y, size), strict=True):
                clean, labels = x.to(self.device), y.to(self.device)
                attacked = self._attacked(clean, labels, stage)
                with torch.no_grad():
                    points += [self.embed(clean).cpu(), self.embed(attacked).cpu()]
                self.passes.forwards += 2 * len(x)
        e = torch.cat(points).double().numpy()
        seed = key_seed("spaces", self.seed, stage.index) % 2**32
        found = KMeans(min(self.experts, len(e)), n_init=1, random_state=seed).fit(e).cluster_centers_
        # Spaces without a point are far from every image.
        self.centres.fill_(FAR)
        self.centres[: len(found)] = torch.as_tensor(found, dtype=torch.float32)

    def _freeze(self) -> None:
        experts = {id(one) for task in range(len(self.tasks)) for one in self._adapter(task)}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in experts:
                self._frozen.append(name)
                parameter.requires_grad_(False)
                parameter.grad = None

    def _describe(self, x: Tensor, y: Tensor, stage: Stage) -> None:
        """Count the spaces of the pool's images, clean and under each attack."""

        def spaces(points: Tensor) -> Tensor:
            with torch.no_grad():
                return self.router_weights(points).argmax(1)

        names = [f"space {number + 1}" for number in range(self.experts)]

        def shares(places: Tensor) -> dict[str, float]:
            counts = torch.bincount(places, minlength=self.experts) / max(len(places), 1)
            return dict(zip(names, counts.tolist(), strict=True))

        with self._alone(stage, "describe"), evaluation_mode(self):
            clean = torch.cat([spaces(part) for part in torch.split(x, 500)])
            by_attack: Table = {"clean": shares(clean)}
            flips = []
            for number, attack in enumerate(stage.attacks):
                parts = zip(torch.split(x, 500), torch.split(y, 500), strict=True)
                moved = torch.cat([spaces(self.craft(attack, *part)) for part in parts])
                by_attack[f"{number + 1} {attack.name}"] = shares(moved)
                flips.append((moved != clean).float().mean())
        by_class: Table = {str(label): shares(clean[y == label]) for label in sorted(set(y.tolist()))}
        flipped = float(torch.stack(flips).mean())
        self._found |= {"space_flips": flipped, "spaces_by_attack": by_attack, "spaces_by_class": by_class}
