"""MID: trains an encoder whose features of attacked images match a teacher's features of clean images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import buffers_kept, count_passes, evaluation_mode
from attacks_pool.calling.randomness import draw_seed, isolated_randomness
from attacks_pool.errors import InputError, unknown
from attacks_pool.sequences import meta_tasks
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import because, needs_float32, nothing_to_mix
from defenses.parts.encoding import Decoder, encode, encoder_parameters, find_head, linear_layers
from defenses.parts.frozen import frozen_copy
from defenses.parts.mixing import Mix, craft_batch
from defenses.registry import register
from defenses.training.plan import TrainPlan
from defenses.training.processes import mean

CraftOn = Literal["student", "surrogate", "target"]


@register
class MID(Defense):
    """Meta invariance defense (Zhang et al., arXiv:2404.03340).

    The classifier is C∘E, with C its last linear layer. First, the teacher, which is an encoder E_t with C
    and a decoder D_t, learns clean images with

        L_T = CE(C(E_t(x)), y) + λ_rec · ‖D_t(E_t(x)) − x‖²

    and is frozen. Then the student encoder E_s learns. With p a softmax over the flattened features, its loss
    for adversarial points x̃ of one attack is

        L(θ) = λ_adv · KL(p(E_t(x)) ‖ p(E_s(x̃)))                    adversarial consistency
             + λ_cyc · KL(p(E_t(x)) ‖ p(E_t(D_t(E_s(x̃)))))          cycle consistency
             + λ_lab · CE(C(E_s(x̃)), y)                             label consistency.

    Each step holds one of the stage's attacks out for meta-test and meta-trains with the others, all crafted
    on θ and detached: θ' = θ − α∇L_train(θ), and L_train(θ) + L_test(θ') is minimised. Inference is
    C(E_s(x)) and costs as much as a plain classifier; D_t(E_s(x)) regenerates the image (:meth:`regenerate`).

    Choices that the paper leaves open: E_t and C start from the given classifier, trained or not, and E_s
    starts as a copy of E_t. The teacher trains for the share ``teacher`` of the stage's epochs (at least one,
    at most all but one; of a single epoch, that share of its steps), so that the total number of steps is
    that of any other defense. Teacher and student each have the plan's whole learning-rate schedule, the
    student also its whole eps warm-up, and momentum is reset in between. A later stage keeps the teacher. The
    squared error is a mean over pixels. E_t runs in eval mode; batch-norm statistics of E_s change once per
    step, with the points of L_train. The held-out attack is drawn uniformly. ``inner_lr=0`` trains without a
    meta step. The decoder is stored with the weights and counts among the parameters; E_t does not. A
    defense that was loaded only from its weights trains a new teacher.

    The authors' code for MNIST differs. It crafts on an undefended target network (``craft_on=target``).
    Clean images are one of the tasks (``clean_task=true``). L_train weights its terms 1.5, 0.8 and 1
    (``lambda_adv``, ``lambda_cyc``, ``lambda_lab``) and is a sum over the tasks, all on the whole batch.
    L_test has weights of 1, and its points are those of the last task, held out or not. p is a softmax over
    the channels of a feature map, and KL a mean over its elements. C has two layers, and the decoder takes
    the student's pooling indices, which contain more of the image than the features. Of 500 MNIST images at
    eps 0.3, the student that the authors released classifies 99.2 % right under attacks crafted on their
    target network, and 0.0 % under attacks on itself (measured on their weights).

    Args:
        model: the classifier, which must end in an ``nn.Linear``.
        teacher: share of the stage that trains the teacher, between 0 and 1.
        lambda_rec: λ_rec, weight of the teacher's reconstruction.
        lambda_adv: λ_adv, weight of adversarial consistency; at 0 the term is not computed.
        lambda_cyc: λ_cyc, weight of cycle consistency, likewise.
        lambda_lab: λ_lab, weight of label consistency, likewise.
        inner_lr: α, step size of the inner update.
        first_order: treat ∇L_train in θ' as a constant; cheaper, and works for layers without second
            derivatives.
        craft_on: ``student`` crafts on C(E_s), as attackers do. The others craft on an undefended model, so
            that training never includes white-box attacks: ``surrogate`` on C(E_t), ``target`` on the
            classifier as it was before the first stage.
        clean_task: whether clean images are one more task, which is held out like an attack.
        mix: how a batch combines the meta-train attacks, see ``AT``; meta-test uses the whole batch.
        seed: determines every random draw.

    Raises:
        InputError: there is no linear layer, a weight or α is negative, all three weights are 0, or
            ``teacher`` is out of range.
    """

    info = DefenseInfo(name="mid", paper="2404.03340", regimes=("meta",), transfer=True)
    smooths_labels = True

    # During a stage, a frozen teacher is copied from the model, and from then on both share one head.
    follows = False

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: float = 0.2,
        lambda_rec: float = 1.0,
        lambda_adv: float = 1.0,
        lambda_cyc: float = 1.0,
        lambda_lab: float = 1.0,
        inner_lr: float = 0.05,
        first_order: bool = False,
        craft_on: CraftOn = "student",
        clean_task: bool = False,
        mix: Mix = "split",
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        weights = {"lambda_adv": lambda_adv, "lambda_cyc": lambda_cyc, "lambda_lab": lambda_lab}
        for name, value in {**weights, "lambda_rec": lambda_rec, "inner_lr": inner_lr}.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value} must be at least 0 and finite")
        if not any(weights.values()):
            raise InputError("lambda_adv, lambda_cyc and lambda_lab are all 0: nothing is left to train")
        if not 0 < teacher < 1:
            raise InputError(f"teacher={teacher} must lie between 0 and 1: it is a share of the stage")
        for name, given, allowed in (("craft_on", craft_on, CraftOn), ("mix", mix, Mix)):
            if given not in get_args(allowed):
                raise unknown(name, given, get_args(allowed))
        linear_layers(model, "mid")
        needs_float32("mid", model)
        self.teacher, self.lambda_rec = teacher, lambda_rec
        self.lambda_adv, self.lambda_cyc, self.lambda_lab = lambda_adv, lambda_cyc, lambda_lab
        self.inner_lr, self.first_order = inner_lr, first_order
        self.craft_on, self.clean_task, self.mix = craft_on, clean_task, mix
        self.decoder: Decoder | None = None
        self._encoder: dict[str, Any] = {}
        # A tuple keeps it from being registered as a submodule and saved with the weights.
        self._frozen: tuple[nn.Module, ...] = ()
        self._aimed: tuple[nn.Module, ...] = ()
        self._taught = 0

    def begin(self, stage: Stage) -> None:
        """Check the attacks, and freeze the target network before the first stage.

        Raises:
            InputError: there are fewer than two.
        """
        if len(stage.attacks) < 2:
            raise InputError(f"mid needs two attacks or more to hold one out, not {len(stage.attacks)}")
        if self.craft_on == "target" and not self._aimed:
            self._aimed = (frozen_copy(self.model),)

    def configure_optimizer(self, plan: TrainPlan) -> torch.optim.Optimizer:
        """Return an optimizer over all parameters; it skips frozen ones, which have no gradient."""
        optimizer = plan.make_optimizer(list(self.model.parameters()))
        if self.decoder is not None:
            optimizer.add_param_group({"params": list(self.decoder.parameters())})
        return optimizer

    def end(self, stage: Stage) -> None:
        """Freeze the teacher if the stage was too short for a student, which then is its copy."""
        if not self._frozen:
            self._freeze(stage)

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """``mix`` of fewer than two meta-train tasks; ``first_order`` without a meta step."""
        inner = {} if self.inner_lr else because("since inner_lr=0 leaves out the meta step", "first_order")
        return {**nothing_to_mix(stages, most=1 if self.clean_task else 2), **inner}

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train teacher or student on one batch, each with the plan's whole schedule."""
        if self.decoder is None:
            self._build(x, optimizer)
        border = self._border(stage)
        if not self._frozen and stage.done >= border:
            self._freeze(stage)
            if optimizer is not None:
                optimizer.state.clear()
        start, stop = (border, 1.0) if self._frozen else (0.0, border)
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = stage.plan.learning_rate((stage.done - start) / (stop - start))
        if self._frozen:
            # The attacks' eps is warmed up for the whole stage's progress; scale it down to the student's.
            epochs, plan = stage.plan.epochs, stage.plan
            cooler = plan.warmth((stage.done - start) * epochs) / plan.warmth(stage.done * epochs)
            if cooler < 1:
                stage = replace(stage, attacks=tuple(attack.scaled(cooler) for attack in stage.attacks))
        return super().step(x, y, stage, optimizer)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """L_T while the teacher trains, then L_train(θ) + L_test(θ')."""
        if not self._frozen:
            return self.teacher_loss(x, y)
        tasks = [*stage.attacks, *([None] if self.clean_task else [])]
        ((train, test),) = meta_tasks(tasks, 1, draw_seed(self.generator))
        x_train, y_train = craft_batch(
            self._craft, tuple(train), x, y, mix=self.mix, generator=self.generator, predict=self._target
        )
        return self.meta_loss(x, x_train, y_train, self._craft(test, x, y), y)

    def teacher_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """CE(C(E_t(x)), y) + λ_rec · ‖D_t(E_t(x)) − x‖² and its terms, without their weights."""
        features, logits = self._encode(self.model, x)
        terms = {"ce": self.label_loss(logits, y), "reconstruction": F.mse_loss(self._decode(features), x)}
        self._count(len(x), backwards=1)
        return {"loss": terms["ce"] + self.lambda_rec * terms["reconstruction"], **terms}

    def meta_loss(
        self, x: Tensor, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor
    ) -> dict[str, Tensor]:
        """L_train(θ) + L_test(θ') on given points, and the terms of L_train without their weights.

        ``x`` (N, C, H, W) are the clean points of both; ``x_train`` has N points, or repeats of these N.
        """
        with torch.no_grad():
            clean, _ = self._encode(self._frozen[0], x)
        self._count(len(x))
        with self._twice_differentiable():
            train = self.consistency(clean.repeat(len(x_train) // len(x), 1), x_train, y_train)
        theta = self.inner_update(train["loss"])
        # Clones, so that the batch-norm statistics of L_test are discarded.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        test = self.consistency(clean, x_test, y_test, {**theta, **buffers})
        # L_train's graph is traversed for L_train, for ∇L_train, and in second order for ∇²L_train too.
        self._count(len(x_train), backwards=2 if self.first_order else 3, losses=True)
        self._count(len(x_test), backwards=1, losses=True)
        total = train.pop("loss") + test["loss"]
        return {"loss": total, **train, "meta_test": test["loss"]}

    def consistency(
        self, clean: Tensor, x_adv: Tensor, y: Tensor, tensors: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """L on points ``x_adv``, and its terms without their weights.

        ``clean`` (N, F) is E_t(x); ``tensors`` replace parameters and buffers of the student.
        """
        features, logits = self._encode(self.model, x_adv, tensors)
        terms: dict[str, Tensor] = {}
        if self.lambda_adv > 0:
            terms["adversarial"] = divergence(clean, features)
        if self.lambda_cyc > 0:
            again, _ = self._encode(self._frozen[0], self._decode(features))
            terms["cycle"] = divergence(clean, again)
        if self.lambda_lab > 0:
            terms["label"] = self.label_loss(logits, y)
        weights = {"adversarial": self.lambda_adv, "cycle": self.lambda_cyc, "label": self.lambda_lab}
        return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(), **terms}

    def inner_update(self, loss: Tensor) -> dict[str, Tensor]:
        """θ' = θ − α∇L_train(θ) by name; by default differentiable to second order in θ."""
        theta = encoder_parameters(self.model, self._encoder["head"])
        if self.inner_lr == 0:
            return dict(theta)
        with torch.autocast(self.device.type, enabled=False):
            gradients = torch.autograd.grad(
                loss,
                list(theta.values()),
                retain_graph=True,
                create_graph=not self.first_order,
                materialize_grads=True,
            )
        pairs = zip(theta.items(), mean(gradients), strict=True)
        return {name: value - self.inner_lr * gradient for (name, value), gradient in pairs}

    def _twice_differentiable(self) -> AbstractContextManager[None]:
        """Inside, attention uses operations with second derivatives, if these are needed.

        The fast kernels (flash, memory-efficient) have none.
        """
        second = self.inner_lr > 0 and not self.first_order
        return sdpa_kernel(SDPBackend.MATH) if second else nullcontext()

    def regenerate(self, x: Tensor) -> Tensor:
        """D_t(E_s(x)): images with the shape of ``x`` (N, C, H, W), in the module's current mode.

        Raises:
            InputError: the defense has not been trained yet.
        """
        if self.decoder is None:
            raise InputError("mid has no decoder before its first stage")
        features, _ = self._encode(self.model, x)
        return self._decode(features)

    def spec(self) -> dict[str, Any]:
        """Adds the name of the encoder's last layer, and the decoder's feature and image sizes."""
        return {**super().spec(), "encoder": self._encoder}

    def load_spec(self, spec: dict[str, Any]) -> None:
        """Add the decoder, if there was one."""
        if spec.get("encoder"):
            self._add_decoder(dict(spec["encoder"]), seed=0)

    def training_state(self) -> dict[str, Any]:
        """Adds the teacher, the number of the stage that trained it, and the target network."""
        teacher, target = (dict(one[0].state_dict()) if one else None for one in (self._frozen, self._aimed))
        return {**super().training_state(), "taught": self._taught, "teacher": teacher, "target": target}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Rebuilds teacher and target network with the structure of the current model."""
        super().load_training_state(state)
        self._aimed = () if state["target"] is None else (frozen_copy(self.model, state["target"]),)
        self._taught, self._frozen = int(state["taught"]), ()
        if state["teacher"] is not None:
            self._frozen = (frozen_copy(self.model, state["teacher"]),)
            self._hold()

    @property
    def _target(self) -> nn.Module:
        """The module that attacks are crafted on in training."""
        if self.craft_on == "student":
            return self
        return self._aimed[0] if self.craft_on == "target" else self._frozen[0]

    def _craft(self, attack: Attack | None, x: Tensor, y: Tensor) -> Tensor:
        """x̃ (N, C, H, W) of an attack, or for None the clean images."""
        if attack is None:
            return x
        if self.craft_on == "student":
            return self.craft(attack, x, y)
        with count_passes(self._target) as passes:
            x_adv = attack(self._target, x, y, generator=self.generator)
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        return x_adv

    def _encode(
        self, model: nn.Module, x: Tensor, tensors: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return encode(model, self._encoder["head"], x, tensors)

    def _decode(self, features: Tensor) -> Tensor:
        assert self.decoder is not None
        images: Tensor = self.decoder(features)
        return images

    def _count(self, samples: int, *, backwards: int = 0, losses: bool = False) -> None:
        """Count sample-passes of encoders outside ``forward``; the cycle term passes through two encoders."""
        encoders = 2 if losses and self.lambda_cyc > 0 else 1
        self.passes.forwards += samples * encoders
        self.passes.backwards += samples * encoders * backwards

    def _border(self, stage: Stage) -> float:
        """Share of the stage at which the student begins; 0 if an earlier stage trained the teacher."""
        if self._taught not in (0, stage.index):
            return 0.0
        epochs = stage.plan.epochs
        return self.teacher if epochs == 1 else min(max(round(self.teacher * epochs), 1), epochs - 1) / epochs

    def _freeze(self, stage: Stage) -> None:
        """End the teacher's training: E_t, C and D_t are frozen, and E_s continues from E_t."""
        self._frozen = (frozen_copy(self.model),)
        self._taught = stage.index
        self._hold()

    def _hold(self) -> None:
        """Freeze C and D_t, which the student shares with the teacher."""
        self.model.get_submodule(self._encoder["head"]).requires_grad_(False)
        if self.decoder is not None:
            self.decoder.requires_grad_(False)

    def _build(self, x: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Find where the encoder ends, and add a decoder for its features and images like ``x``."""
        head = find_head(self.model, x[:2], "mid")
        with torch.no_grad(), evaluation_mode(self.model), buffers_kept(self.model):
            features, _ = encode(self.model, head, x[:2])
        found = {"head": head, "features": features.shape[1], "image": list(x.shape[1:])}
        decoder = self._add_decoder(found, seed=draw_seed(self.generator))
        if optimizer is not None:
            optimizer.add_param_group({"params": list(decoder.parameters())})

    def _add_decoder(self, encoder: dict[str, Any], *, seed: int) -> Decoder:
        self._encoder = encoder
        channels, height, width = encoder["image"]
        with isolated_randomness(seed, torch.device("cpu")):
            self.decoder = Decoder(encoder["features"], (channels, height, width))
        self.decoder.to(next(self.model.parameters()))
        return self.decoder


def divergence(clean: Tensor, features: Tensor) -> Tensor:
    """KL(p(clean) ‖ p(features)) of features (N, F), p a softmax over F; mean over the batch."""
    return F.kl_div(features.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
