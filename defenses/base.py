"""The base class of all defenses: a classifier with a method to train it, stage by stage."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import Passes, buffers_kept, count_passes, ordinary_mode, out_of_inference
from attacks_pool.calling.logits import ask
from attacks_pool.calling.randomness import isolated_randomness, keyed_generator
from attacks_pool.errors import InputError
from attacks_pool.fast.copy import pays_in_bfloat16
from attacks_pool.fast.follow import Follower
from defenses.metadata import DefenseInfo, parameters_of
from defenses.training import processes
from defenses.training.compiled import check_compiler, compiled
from defenses.training.fit import Training, check_data
from defenses.training.plan import TrainPlan
from defenses.training.precision import sound_in_bfloat16
from defenses.training.shown import listener_of
from defenses.training.snapshot import Snapshot
from defenses.training.stage import Batches, Progress, Stage, TrainingDivergedError
from defenses.training.tally import Report
from defenses.training.trainable import Trainable

__all__ = ["Batches", "Defense", "Progress", "Stage", "TrainingDivergedError"]


class Defense(Trainable):
    """A classifier and a way to train it; ``forward`` returns logits, so any attack can be run on it.

    Subclasses define their metadata in ``info`` and usually override only :meth:`loss`. Their constructor
    takes keyword arguments and stores each in an attribute of the same name.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K); it includes any normalisation.
        seed: together with stage and epoch, it determines every random draw of training.
    """

    info: ClassVar[DefenseInfo]
    follows: ClassVar[bool] = True
    """Whether training may attack a fast copy of ``model``; the copy follows only weights and buffers."""
    needs_attack: ClassVar[bool] = False
    """Whether training without an attack is refused."""
    smooths_labels: ClassVar[bool] = False
    """Whether the loss uses :meth:`label_loss`, so that a plan's ``label_smoothing`` has an effect.

    It is not inherited by a class with a loss or step of its own.
    """

    def __init_subclass__(cls, **more: Any) -> None:
        """Do not take over ``smooths_labels`` if the loss is another one."""
        super().__init_subclass__(**more)
        if {"loss", "step"} & vars(cls).keys() and "smooths_labels" not in vars(cls):
            cls.smooths_labels = False

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.settings: dict[str, Any] = {}
        self.stages = 0
        self.passes = Passes()
        self.generator = keyed_generator("defense", seed)
        self._reduced = False
        self._smoothing = 0.0
        # Tuples keep a copy and a compiled form of the model from being registered as submodules.
        self._follower: tuple[Follower, ...] = ()
        self.compiled = ()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        model = self.model
        if self.compiled and self.training and torch.is_grad_enabled():
            of, fast = self.compiled
            # A defense may have given itself another model since then.
            model = fast if of is model else model
        return ask(model, x, "the classifier")

    @ordinary_mode()
    def fit(
        self,
        data: Batches,
        attacks: Sequence[Attack],
        *,
        plan: TrainPlan | None = None,
        progress: Callable[[Progress], None] | bool | None = None,
        validation: Batches | None = None,
        checkpoint: Callable[[Snapshot], None] | None = None,
        resume: Snapshot | None = None,
    ) -> list[dict[str, float]]:
        """Train one stage on clean batches against ``attacks``; afterwards the defense is in eval mode.

        Args:
            data: any re-iterable of ``(x, y)`` batches, such as a DataLoader; ``x`` in [0, 1].
            attacks: one attack in the continual regime, several in joint and meta, none for plain training.
            plan: the training budget, by default :class:`TrainPlan`.
            progress: True writes lines to stderr, False writes none; None, the default, writes them only in
                notebooks. A function is called after each batch. It may stop training by raising an
                exception, which reaches the caller; ``checkpoint`` gets a snapshot of that moment first.
            validation: held-out batches, needed only by ``select="val-robust"``.
            checkpoint: called with a snapshot after each epoch.
            resume: a snapshot to continue from, with the same arguments as when it was taken, on a new
                defense with the same parameters and the same kind of classifier. The result equals that of
                uninterrupted training bit for bit, if ``data`` repeat their order: a shuffling loader
                needs ``set_epoch``. ``begin`` is not called again.

        Returns:
            The mean losses of each epoch.

        Raises:
            InputError: data that are empty, are not pairs of tensors or cannot be read twice, images out of
                range, missing validation data, attacks that are not a list, several attacks for a defense
                with only the continual regime, a plan that the defense cannot follow, or a snapshot of
                something else.
            TrainingDivergedError: the loss is not finite.
        """
        plan = plan or TrainPlan()
        out_of_inference(self)
        if not isinstance(attacks, Sequence) or any(isinstance(one, str) for one in attacks):
            given = reprlib.repr(attacks) if isinstance(attacks, Sequence) else type(attacks).__name__
            raise InputError(f"attacks must be a list such as [pool.get('pgd', eps=0.2)], not {given}")
        self.check_attacks(attacks)
        self.check_plan(plan)
        check_data(data, plan, validation)
        data = self.stage_batches(data)
        if resume is not None:
            resume.state.restore(self)
        self._alike(start=True)
        stage = Stage(self.stages + 1, tuple(attack.for_training() for attack in attacks), plan, data)
        if resume is None:
            self.begin(stage)
            self._alike()
        training = Training(
            self,
            data,
            stage,
            progress=listener_of(progress),
            validation=validation,
            checkpoint=checkpoint,
        )
        if resume is not None:
            training.resume(resume)
        self._smoothing = plan.label_smoothing
        try:
            history = training.run()
        finally:
            self._smoothing = 0.0
        self.end(stage)
        self.stages += 1
        self.eval()
        self._alike()
        self.passes = processes.first(self.passes)
        return history

    def _alike(self, *, start: bool = False) -> None:
        """Give all processes the weights of process 0; at the ``start``, it alone keeps counts of passes."""
        if processes.count() == 1:
            return
        processes.share_state(self)
        if start and processes.rank():
            self.passes = Passes()

    def stage_batches(self, data: Batches) -> Batches:
        """The batches that a stage trains on, by default those of ``data``; called before :meth:`begin`.

        A resumed stage calls it too, before the snapshot is restored.
        """
        return data

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage before it trains; a defense that grows may add modules here."""

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer | None:
        """Return a new optimizer over the trainable parameters, or None if there are none."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return plan.make_optimizer(parameters) if parameters else None

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train on one batch: loss, backward pass, optimizer step. Returns the loss and its terms."""
        with self.precision(stage.plan):
            terms = self.loss(x, y, stage)
        if isinstance(terms, Tensor):
            terms = {"loss": terms}
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            self.clip_gradients(optimizer, stage.plan)
            optimizer.step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def clip_gradients(self, optimizer: torch.optim.Optimizer, plan: TrainPlan) -> None:
        """Scale the gradients of ``optimizer``'s parameters down to the plan's maximum norm, if any."""
        if plan.max_grad_norm is not None:
            # Only these: parameters frozen in this stage still hold gradients of the previous stage.
            moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(moved, plan.max_grad_norm)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor | dict[str, Tensor]:
        """Return the scalar to minimise on a clean batch, or a dict with it as ``loss`` and its terms."""
        raise NotImplementedError(f"{type(self).__name__} must define loss or step")

    def label_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of ``logits`` (N, K) with labels (N,); in ``fit`` with the plan's smoothing.

        With smoothing s, the target is 1 − s + s/K for the label and s/K for every other class.
        """
        return F.cross_entropy(logits, y, label_smoothing=self._smoothing)

    def end(self, stage: Stage) -> None:
        """Finish a stage after it has trained."""

    def craft(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Craft adversarial points against the defense in eval mode; batch-norm statistics do not change."""
        with buffers_kept(self), self.searched(x) as model:
            return attack(model, x, y, generator=self.generator)

    @contextlib.contextmanager
    def searched(self, x: Tensor) -> Iterator[nn.Module]:
        """Yield the module to search around ``x``: the defense, or in ``fit`` a fast copy of its model."""
        model = self._follower[0].search_model(x) if self._follower else self.model
        if model is self.model:
            yield self
            return
        with count_passes(model) as passes:
            yield model
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards

    def prepare(self, x: Tensor, plan: TrainPlan) -> None:
        """Choose the precision of a stage from its first batch (N, C, H, W); ``fit`` calls this.

        See ``TrainPlan.mixed_precision``. If training uses bfloat16 and the defense's forward pass is only
        that of its model, attacks search a fast copy of the model that is kept up to date.
        """
        with isolated_randomness(0, x.device), buffers_kept(self.model), self.precision(plan):
            self._reduced = plan.mixed_precision != "off" and pays_in_bfloat16(self.model, x)
        if self._reduced and plan.mixed_precision == "auto" and x.device.type == "cpu":
            with isolated_randomness(0, x.device), buffers_kept(self.model):
                self._reduced = sound_in_bfloat16(self.model, x)
        if self._reduced and self.follows and type(self).forward is Defense.forward:
            self.model.to(memory_format=torch.channels_last)
            self._follower = (Follower(self.model),)
        if plan.compile == "on":
            self.train()
            with self.precision(plan):
                self.compiled = (self.model, compiled(self.model, x))

    @property
    def reduced(self) -> bool:
        """Whether the stage that is training uses bfloat16 because :meth:`prepare` chose it."""
        return self._reduced

    def unprepare(self) -> None:
        """Undo :meth:`prepare` after a stage, so that evaluation and copies see the usual memory format."""
        if self._follower:
            self.model.to(memory_format=torch.contiguous_format)
        self._reduced, self._follower, self.compiled = False, (), ()

    def view(self, attack: Attack | None) -> nn.Module:  # noqa: ARG002 - target-aware defenses use it
        """The module that evaluation and attackers use; target-aware defenses choose it by the attack."""
        return self

    def spec(self) -> dict[str, Any]:
        """Return JSON data from which the structure can be rebuilt before weights are loaded."""
        own = {name: getattr(self, name) for name in parameters_of(type(self)) if hasattr(self, name)}
        return {"defense": self.info.name, "parameters": {**own, **self.settings}}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Rebuild the structure that ``spec`` describes; a defense that grows adds its modules here."""

    def report(self) -> Report:
        """Return numbers and tables about the training so far, for the record of a run; by default none."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """Return the state that resuming needs in addition to the weights."""
        return {
            "stages": self.stages,
            "generator": self.generator.get_state(),
            "forwards": self.passes.forwards,
            "backwards": self.passes.backwards,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`training_state`."""
        self.stages = int(state["stages"])
        self.generator.set_state(state["generator"])
        self.passes = Passes(int(state["forwards"]), int(state["backwards"]))

    def precision(self, plan: TrainPlan) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 autocast if the plan selects it, see ``TrainPlan.mixed_precision``."""
        kind = self.device.type
        automatic = kind == "cuda" or self._reduced
        if plan.mixed_precision == "on" or (plan.mixed_precision == "auto" and automatic):
            return torch.autocast(kind, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def check_images(self, x: Tensor) -> None:
        """Reject images (N, C, H, W) that this defense cannot train on; called before a run begins.

        Raises:
            InputError: it cannot.
        """

    def check_plan(self, plan: TrainPlan) -> None:
        """Reject a plan that this defense cannot follow; also called before a run begins.

        Raises:
            InputError: label smoothing for a defense whose loss has no cross-entropy with labels; ``compile``
                for one that changes its network between passes, or without a compiler.
        """
        if plan.compile == "on":
            if not self.follows or type(self).forward is not Defense.forward:
                raise InputError(
                    f"compile=on does not go with {self.info.name}, which changes its network between "
                    "passes: set compile=off"
                )
            check_compiler(self.device)
        if plan.label_smoothing and not self.smooths_labels:
            raise InputError(
                f"label_smoothing={plan.label_smoothing:g} has no effect on {self.info.name}, whose loss has "
                "no cross-entropy with labels that it could smooth: leave it out"
            )

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:  # noqa: ARG002 - some use it
        """Parameters that change nothing here, by name, each with the reason; a run refuses them.

        Args:
            stages: the attacks of each stage.
        """
        return {}

    def knobs_in_use(self) -> tuple[str, ...] | None:
        """The knobs of the stages' attacks that training depends on; None stands for all of them."""
        return None

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Reject attacks that this defense cannot train against; also called before a run begins.

        Raises:
            InputError: several attacks for a defense with only the continual regime, or none for one that
                ``needs_attack``.
        """
        if self.needs_attack and not attacks:
            raise InputError(f"{self.info.name} needs an attack to train against")
        if len(attacks) > 1 and set(self.info.regimes) == {"continual"}:
            raise InputError(
                f"{self.info.name} takes one attack a stage, not {len(attacks)}: call fit once for each"
            )
