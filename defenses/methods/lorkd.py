"""LoRKD: decomposes a jointly robust teacher into a shared backbone and one low-rank expert per family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import key_seed
from attacks_pool.errors import InputError, unknown
from attacks_pool.losses import log_probabilities
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import because, needs_float32
from defenses.parts.lowrank import (
    CLEAN,
    AdaptedDefense,
    ConvRouter,
    Route,
    Task,
    TaskBatchNorm,
    adapted,
)
from defenses.parts.lowrank.network import Adapt, image_channels
from defenses.parts.lowrank.tasks import nearest
from defenses.registry import register

Choose = Literal["oracle", "router"]


@register
class LoRKD(AdaptedDefense):
    """Low-rank knowledge decomposition (Zhou et al., arXiv:2404.17184), of robustness by attack family.

    First, the classifier f becomes a jointly robust teacher: L = CE(f(x̃), y) on batches that are divided
    equally among the attacks and clean images. Then a frozen copy of it teaches its decomposition into
    a shared backbone W, initialised with the teacher, and low-rank experts W_e = W + s·B_e A_e, one for each
    family of the attacks and one for clean images:

        L = CE(f_e(x̃), y) + λ·T²·KL(p_T(teacher(x̃)) ‖ p_T(f_e(x̃))),   p_T a softmax at temperature T.

    All samples of a mixed batch share one forward pass, each through its own family's expert, and batch
    norm has statistics for each expert, so gradients are separated exactly. An expert merges into a plain
    network (:meth:`expert`) whose state dict loads into the classifier's own architecture.

    The expert is chosen by the attack with ``oracle`` (an unseen family gets the clean expert). With
    ``router``, a small network is trained beside the experts to predict the family of x̃; its softmax weights
    mix the experts, so that attacks differentiate through it.

    Departures: the paper decomposes a medical foundation model by anatomical region into experts that are
    smaller than it; here teacher and experts have one architecture, and families of attacks are the tasks.
    Clean images have their own expert, since every defense is also evaluated on them. The teacher trains for
    the share ``teacher_share`` of the stage's epochs, so that the total number of optimizer steps is that of
    any other defense; each of the two parts has a whole learning-rate schedule. Adapters are convolutions to
    r channels, as in MoLA-Grad. The authors distil features, with T = 10, and the scripts that they published
    multiply the KL by 0, so that their experts learn from labels alone: ``lambda_kl=0``. A further stage
    decomposes anew. The default rank, scale and λ were the best ones tried on the digits' validation split
    (``docs/tuning.md``).

    Args:
        model: the classifier.
        rank: r, the rank of an expert.
        scale: s.
        lambda_kl: λ, weight of the distillation.
        temperature: T.
        teacher_share: the share of a stage's epochs that trains the teacher.
        choose: ``oracle`` or ``router``.
        router_width: channels of the router's first convolution.
        router_depth: number of its convolutions with stride 2, each twice as wide as the one before.
        channels: number of image channels; by default that of the classifier's first convolution.
        adapt: ``conv`` adapts convolutions with groups=1, ``all`` also grouped convolutions, linear layers
            and multi-head attention; by default ``conv`` if at least half of these layers are convolutions
            with groups=1, as in ResNets and small CNNs, and ``all`` otherwise, as in ViT and ConvNeXt.
        coverage: the least share of parameters or multiply-adds that adapters must reach; .05 by default.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range, or the network has no convolution; in ``fit``, the attacks
            belong to fewer than two families.
    """

    info = DefenseInfo(name="lorkd", paper="2404.17184", regimes=("joint",), target_aware=True)
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 8,
        scale: float = 4.0,
        lambda_kl: float = 1.0,
        temperature: float = 1.0,
        teacher_share: float = 0.5,
        choose: Choose = "oracle",
        router_width: int = 16,
        router_depth: int = 1,
        channels: int | None = None,
        adapt: Adapt | None = None,
        coverage: float | None = None,
        seed: int = 0,
    ) -> None:
        if not (math.isfinite(lambda_kl) and lambda_kl >= 0):
            raise InputError(f"lambda_kl={lambda_kl} must be at least 0 and finite")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature={temperature} must be above 0 and finite")
        if not 0 < teacher_share < 1:
            raise InputError(f"teacher_share={teacher_share} must be above 0 and below 1")
        if choose not in get_args(Choose):
            raise unknown("choose", choose, get_args(Choose))
        super().__init__(model, rank=rank, scale=scale, adapt=adapt, coverage=coverage, seed=seed)
        self.lambda_kl, self.temperature, self.teacher_share = lambda_kl, temperature, teacher_share
        if choose == "router":
            needs_float32("lorkd with choose=router", model)
        self.choose, self.router_width, self.router_depth = choose, router_width, router_depth
        self.channels = channels
        self.router: ConvRouter | None = None
        self.decomposed = False
        # A tuple keeps it from being registered as a submodule and saved with the weights.
        self._teacher: tuple[nn.Module, ...] = ()

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:  # noqa: ARG002 - the same for all
        """The router's parameters without one, and the temperature with λ = 0."""
        found = {}
        if self.choose == "oracle":
            found = because("since choose=oracle has no router", "router_width", "router_depth", "channels")
        if self.lambda_kl == 0:
            found |= because("since lambda_kl=0 leaves out the distillation", "temperature")
        return found

    def begin(self, stage: Stage) -> None:
        """Add experts, without effect yet, for clean images and each family; the teacher trains first."""
        for module in adapted(self.model):
            module.remove_tasks()
        self.tasks, self.router, self.decomposed = [], None, False
        families = dict.fromkeys(attack.info.family for attack in stage.attacks)
        self._add_experts([CLEAN, *map(Task.of_family, families)])

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Release the teacher; decompose first if the stage was too short for it."""
        if not self.decomposed:
            self._decompose()
        self._teacher = ()

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train the teacher on one batch or, after its share of the stage, the experts."""
        if stage.done >= self.teacher_share and not self.decomposed:
            self._decompose()
        done, share = stage.done, self.teacher_share
        part = (done - share) / (1 - share) if self.decomposed else done / share
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = stage.plan.learning_rate(part)
        return super().step(x, y, stage, optimizer)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """CE for the teacher; CE + λ·T²·KL(teacher ‖ expert) for the experts, plus the router's own loss."""
        x_adv, labels, tasks = self.task_batch(x, y, stage)
        if not self.decomposed:
            return {"loss": self.label_loss(self(x_adv), labels)}
        logits = self.by_task(x_adv, tasks)
        ce, kl = self.label_loss(logits, labels), self._divergence_from_teacher(x_adv, logits)
        terms = {"loss": ce + self.lambda_kl * kl, "ce": ce, "kl": kl}
        if self.router is not None:
            terms["router"] = F.cross_entropy(self.router(x_adv), tasks)
            terms["loss"] = terms["loss"] + terms["router"]
        return terms

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the teacher while it trains, then of the clean expert or the router's mixture."""
        if self.router is None or not self.decomposed or self.routing.route.chosen:
            return super().forward(x)
        with self.routing.along(Route(weights=self.router_weights(x))):
            return super().forward(x)

    def router_weights(self, x: Tensor) -> Tensor:
        """(N, E) weights of the experts, clean images first; they sum to 1. E is 0 without a router."""
        if self.router is None:
            return x.new_zeros(len(x), 0)
        weights: Tensor = self.router(x).to(x.dtype).softmax(1)
        return weights

    def route_for(self, attack: Attack | None) -> Route:
        """Attacks are crafted on the teacher, on their family's expert, or on the router's mixture."""
        if not self.decomposed or self.router is not None:
            return Route()
        return Route(task=nearest(self.tasks, attack))

    def view(self, attack: Attack | None) -> nn.Module:
        """With ``oracle``, the plain expert for the attack's family; with a router, the defense itself."""
        if self.choose == "router":
            return self
        return self.merged(nearest(self.tasks, attack) if self.decomposed else None)

    def expert(self, family: str) -> nn.Module:
        """The plain network of a family, or of ``clean``, in eval mode.

        Raises:
            InputError: there is no expert for this family.
        """
        names = [task.family for task in self.tasks]
        if family not in names:
            raise unknown("expert", family, names)
        return self.merged(names.index(family))

    def spec(self) -> dict[str, Any]:
        """Adds whether the decomposition into experts has been made."""
        return {**super().spec(), "decomposed": self.decomposed}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add experts for the tasks of ``spec``."""
        self.load_coverage(spec)
        self._add_experts([Task(**task) for task in spec["tasks"][len(self.tasks) :]])
        self.decomposed = bool(spec["decomposed"])
        self._set_route()

    def training_state(self) -> dict[str, Any]:
        """Adds the teacher, which exists while the experts train."""
        teacher = [module.state_dict() for module in self._teacher]
        return {**super().training_state(), "teacher": teacher[0] if teacher else None}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Rebuilds the teacher, a plain network of the classifier's architecture."""
        super().load_training_state(state)
        self._teacher = ()
        if state["teacher"] is not None:
            teacher = self.merged(None).requires_grad_(False)
            teacher.load_state_dict(state["teacher"])
            self._teacher = (teacher,)

    def _decompose(self) -> None:
        """Make a frozen copy of the backbone the teacher; the experts start from the backbone."""
        self._teacher = (self.merged(None).requires_grad_(False),)
        for module in adapted(self.model):
            if isinstance(module, TaskBatchNorm):
                module.restart()
        self.decomposed = True
        self._set_route()

    def _set_route(self) -> None:
        """Set the default route; with ``oracle``, this is the clean expert."""
        oracle = self.decomposed and self.choose == "oracle"
        self.routing.route = Route(task=0) if oracle else Route()

    def _add_experts(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.add_task(task)
        if self.choose == "router" and self.router is None and tasks:
            self.router = ConvRouter(
                self.channels or image_channels(self.model),
                len(self.tasks),
                width=self.router_width,
                depth=self.router_depth,
                seed=key_seed("router", self.seed),
            ).to(next(self.model.parameters()))
        self._set_route()

    def _divergence_from_teacher(self, x: Tensor, logits: Tensor) -> Tensor:
        """T²·KL(teacher ‖ expert), mean over the batch."""
        with torch.no_grad():
            taught = self._teacher[0](x).to(logits.dtype)
        self.passes.forwards += len(x)
        student, teacher = (log_probabilities(value / self.temperature) for value in (logits, taught))
        kl = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
        return self.temperature**2 * kl

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Require attacks of at least two families.

        Raises:
            InputError: the attacks belong to fewer than two families.
        """
        families = {attack.info.family for attack in attacks}
        if len(families) < 2:
            given = f"all of {next(iter(families))}" if families else "none"
            raise InputError(
                f"lorkd needs attacks of two families or more, an expert each: these are {given}"
            )
        super().check_attacks(attacks)
