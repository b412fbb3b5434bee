"""CAD: adapts to each new attack from a few examples, with a classifier that grows and prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import count_passes, evaluation_mode
from attacks_pool.calling.randomness import isolated_randomness, key_seed, keyed_generator
from attacks_pool.errors import unknown
from defenses.base import Batches, Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import (
    above_zero,
    at_least_one,
    not_negative,
    single_stage,
)
from defenses.parts.encoding import encode, find_head, linear_layers
from defenses.parts.frozen import frozen_copy
from defenses.parts.memory import of_each_class
from defenses.parts.pool import PoolBatches
from defenses.registry import register
from defenses.training.processes import current
from defenses.training.stage import once_more
from defenses.training.tally import Report

CraftOn = Literal["defense", "target"]
AT_ONCE = 500
"""How many of the few examples are crafted at once."""


@register
class CAD(Defense):
    """Continual adversarial defense (Wang et al., arXiv:2312.09481): few examples of each new attack.

    The classifier is a linear layer on an encoder h. In place of the layer, every attack a has a row v_{a,k}
    for each class k, compared by the cosine:

        s_{a,k}(x) = τ · cos(h(x), v_{a,k}),   logit_k(x) = max_a s_{a,k}(x).

    Stage 1 trains h and v_1 by L = CE(s_1(x̃), y). Then v_{1,k} becomes the prototype p_{1,k}, the mean of
    h(x̃) over the images of class k. In each later stage t, h is frozen. The attack gives n examples of each
    class, crafted once, at the start of the stage. v_t starts as their prototypes p_t, and v_t alone is
    trained, with y + (t − 1)·K as the label among all t·K rows:

        L = CE(s(x̃), (t, y)) + λ · CE(s(p_{a,k} + r·ε), (a, k)),   ε ~ N(0, I),

    where (a, k) are drawn from the earlier attacks and all classes, and r² is the mean over dimensions of the
    variance of h(x̃) within classes, measured after stage 1. No image is kept between stages, only prototypes.

    From the authors' code: the cosine classifier with τ = 16, new rows for each attack, the prediction by the
    row of largest score among all attacks, prototypes as weights, a frozen encoder, and ten examples of a
    class. The term with prototypes is of the paper; their code computes it for the old rows alone, and leaves
    it out. With ``craft_on=target`` all examples are crafted on the undefended classifier, as theirs are. A
    defense that sees only such examples is not expected to withstand attacks on itself. Ours: ``defense``,
    which crafts on the current f in stage 1, and later on f as it is at the start of the stage; the number of
    steps, which is that of any other defense. Not built: classes reserved for future attacks with their
    losses of weight 0.001, and the ensemble with the undefended classifier for clean images.

    ``report`` gives the number of examples of the later stages, and r.

    Args:
        model: the classifier, which must end in an ``nn.Linear``.
        shots: n.
        scale: τ.
        weight: λ; at 0 the term is not computed.
        craft_on: ``defense`` or ``target``.
        seed: determines every random draw.

    Raises:
        InputError: there is no linear layer, or a parameter is out of range.
    """

    info = DefenseInfo(name="cad", paper="2312.09481", regimes=("continual",), grows=True)
    needs_attack = True
    smooths_labels = True
    follows = False

    def __init__(
        self,
        model: nn.Module,
        *,
        shots: int = 10,
        scale: float = 16.0,
        weight: float = 1.0,
        craft_on: CraftOn = "defense",
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        at_least_one(shots=shots)
        above_zero(scale=scale)
        not_negative(weight=weight)
        if craft_on not in get_args(CraftOn):
            raise unknown("craft_on", craft_on, get_args(CraftOn))
        linear_layers(model, "cad")
        self.shots, self.scale, self.weight, self.craft_on = shots, scale, weight, craft_on
        self.rows = nn.ParameterList()
        """v_a (K, D) of each attack."""
        self._head = ""
        # A tuple keeps it from being registered as a submodule and saved with the weights.
        self._target: tuple[nn.Module, ...] = ()
        self._batches: PoolBatches | None = None
        self._prototypes: list[Tensor] = []
        self._radius = 0.0
        self._examples = 0

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """``craft_on`` has an effect in stage 1; the others have none there."""
        return single_stage(stages, "shots", "weight")

    def stage_batches(self, data: Batches) -> Batches:
        """The batches of ``data`` in stage 1, then those of the few examples."""
        self._batches = PoolBatches(data, key_seed("cad", self.seed))
        return self._batches

    def begin(self, stage: Stage) -> None:
        """Add rows for the attack; from the second stage on, freeze h and craft the few examples."""
        draws = self.generator
        key = key_seed("cad", self.seed, stage.index)
        self.generator = keyed_generator(key)
        try:
            with isolated_randomness(key, self.device):
                if stage.index == 1:
                    self._start(stage)
                else:
                    self._adapt(stage)
        finally:
            self.generator = draws

    def end(self, stage: Stage) -> None:
        """After stage 1, replace its rows by prototypes."""
        if stage.index == 1:
            key = key_seed("cad", self.seed, "end")
            draws, self.generator = self.generator, keyed_generator(key)
            try:
                with isolated_randomness(key, self.device):
                    self._take_prototypes(stage)
            finally:
                self.generator = draws
        self._batches = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K): the largest score of a class among the attacks; before stage 1, the classifier's."""
        if not len(self.rows):
            return super().forward(x)
        scores = self.scores(self.features(x))
        return scores.view(len(x), len(self.rows), -1).amax(1)

    def features(self, x: Tensor) -> Tensor:
        """h(x) (N, D)."""
        return encode(self.model, self._head, x)[0]

    def scores(self, features: Tensor) -> Tensor:
        """s (N, A·K) of features (N, D), attack by attack."""
        rows = torch.cat(list(self.rows)).to(features.dtype)
        return self.scale * F.normalize(features, dim=1) @ F.normalize(rows, dim=1).T

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``prototypes``, without λ."""
        if stage.index == 1:
            features = self.features(self.crafted(stage.attacks[0], x, y))
            self.passes.forwards += len(x)
            self.passes.backwards += len(x)
            return {"loss": self.label_loss(self.scores(features), y)}
        with torch.no_grad():
            features = self.features(x)
        self.passes.forwards += len(x)
        classes = len(self.rows[0])
        ce = self.label_loss(self.scores(features), y + (stage.index - 1) * classes)
        if self.weight == 0:
            return {"loss": ce}
        earlier = torch.cat(self._prototypes[: stage.index - 1]).to(features)
        part = current(len(x))
        drawn = torch.randint(len(earlier), (part.total,), generator=self.generator)
        noise = torch.randn(part.total, earlier.shape[1], generator=self.generator)[part.slice].to(features)
        chosen = drawn[part.slice].to(features.device)
        kept = self.label_loss(self.scores(earlier[chosen] + self._radius * noise), chosen)
        return {"loss": ce + self.weight * kept, "ce": ce, "prototypes": kept}

    def crafted(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """x̃ (N, C, H, W), crafted on f or on the undefended classifier."""
        if not self._target:
            return self.craft(attack, x, y)
        with count_passes(self._target[0]) as passes:
            x_adv = attack(self._target[0], x, y, generator=self.generator)
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        return x_adv

    def train(self, mode: bool = True) -> Self:
        """Set train mode; the frozen encoder stays in eval mode."""
        super().train(mode)
        if self.stages:
            self.model.eval()
        return self

    def report(self) -> Report:
        """The number of examples of the later stages, and r."""
        return {"examples": float(self._examples), "radius": self._radius} if self.stages else {}

    def spec(self) -> dict[str, Any]:
        """Adds the name of the encoder's last layer, and the shape of the rows of all attacks."""
        shape = [len(self.rows), *self.rows[0].shape] if len(self.rows) else []
        return {**super().spec(), "head": self._head, "rows": shape}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add the rows."""
        self._head = spec["head"]
        if spec["rows"]:
            attacks, classes, width = spec["rows"]
            for _ in range(attacks - len(self.rows)):
                self._add_rows(torch.zeros(classes, width))

    def training_state(self) -> dict[str, Any]:
        """Adds the prototypes, the few examples while a stage trains, and the undefended classifier."""
        pool = self._batches
        held = None if pool is None or pool.x is None else (pool.x, pool.y, pool.sizes)
        more = {
            "pool": held,
            "prototypes": list(self._prototypes),
            "radius": self._radius,
            "examples": self._examples,
            "target": dict(self._target[0].state_dict()) if self._target else None,
        }
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores them."""
        super().load_training_state(state)
        if state["pool"] is not None and self._batches is not None:
            self._batches.choose(*state["pool"])
        self._prototypes, self._radius = list(state["prototypes"]), float(state["radius"])
        self._examples = int(state["examples"])
        self._target = () if state["target"] is None else (frozen_copy(self.model, state["target"]),)

    def _start(self, stage: Stage) -> None:
        """Find the encoder, and start v_1 with the weights of the classifier's linear layer."""
        x, _ = next(iter(once_more(stage, self.device)))
        self._head = find_head(self.model, x[:2], "cad")
        if self.craft_on == "target":
            self._target = (frozen_copy(self.model),)
        head = self.model.get_submodule(self._head)
        assert isinstance(head, nn.Linear)
        self._add_rows(head.weight.detach().clone())
        # The layer itself is not used any more.
        head.requires_grad_(False)

    def _adapt(self, stage: Stage) -> None:
        """Freeze h and all rows, choose and craft the few examples, and add rows that start as prototypes."""
        assert self._batches is not None
        self.model.requires_grad_(False)
        self.rows.requires_grad_(False)
        images: Tensor | None = None
        labels, keys = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        sizes: list[int] = []
        for x, y in once_more(stage, torch.device("cpu")):
            sizes.append(len(y))
            more = torch.rand(len(y), generator=self.generator, dtype=torch.float64)
            labels, keys = torch.cat([labels, y]), torch.cat([keys, more])
            images = x if images is None else torch.cat([images, x])
            chosen = of_each_class(labels, keys, self.shots)
            images, labels, keys = images[chosen], labels[chosen], keys[chosen]
        assert images is not None
        self._examples += len(labels)
        made = []
        with count_passes(self) as passes:
            for x, y in zip(torch.split(images, AT_ONCE), torch.split(labels, AT_ONCE), strict=True):
                made.append(self.crafted(stage.attacks[0], x.to(self.device), y.to(self.device)).cpu())
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        x_adv = torch.cat(made)
        with torch.no_grad(), evaluation_mode(self):
            features = torch.cat([self.features(x.to(self.device)) for x in torch.split(x_adv, AT_ONCE)])
        self.passes.forwards += len(x_adv)
        means = self._means(features, labels.to(self.device))
        self._prototypes.append(means.cpu())
        self._add_rows(means)
        self._batches.choose(x_adv, labels, sizes)

    def _take_prototypes(self, stage: Stage) -> None:
        """Replace v_1 by the means of h(x̃), and measure r."""
        features, labels = [], []
        with count_passes(self) as passes:
            for x, y in once_more(stage, self.device):
                x_adv = self.crafted(stage.attacks[0], x, y)
                with torch.no_grad(), evaluation_mode(self):
                    features.append(self.features(x_adv))
                labels.append(y)
                passes.forwards += len(x)
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        found, truth = torch.cat(features), torch.cat(labels)
        means = self._means(found, truth)
        self._prototypes = [means.cpu()]
        self._radius = float((found - means[truth]).square().mean().sqrt())
        with torch.no_grad():
            self.rows[0].copy_(means)

    def _means(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean features (K, D) of each class; a class without points has its row of the first attack."""
        means: Tensor = self.rows[0].detach().to(features.dtype).clone()
        for label in sorted(set(labels.tolist())):
            means[label] = features[labels == label].mean(0)
        return means

    def _add_rows(self, values: Tensor) -> None:
        """Add the rows of one more attack."""
        like = next(self.model.parameters())
        self.rows.append(nn.Parameter(values.to(like.device, like.dtype, copy=True)))
