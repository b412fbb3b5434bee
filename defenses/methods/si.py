"""SI: synaptic intelligence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, because, not_negative, single_stage
from defenses.parts.consolidation import Weights, copied, placed, pull, trained
from defenses.registry import register
from defenses.training.accumulate import next_step
from defenses.training.processes import step_mean


@register
class SI(Defense):
    """Synaptic intelligence (Zenke, Poole and Ganguli, arXiv:1703.04200) of adversarial training.

    Stage 1 is adversarial training. Later stages, with θ* the weights at the end of the previous stage, use

        L = CE(f(x̃), y) + c · Σ_i Ω_i (θ_i − θ*_i)²,
        ω_i = −Σ_steps g_i · (θ_i after the step − θ_i before it),    Ω_i ← max(Ω_i + ω_i / (Δ_i² + ξ), 0).

    g = ∂CE/∂θ is the gradient without the penalty and before any clipping, ω the path integral over the
    stage's steps, Δ the stage's change of θ, and ξ the damping. Negative importance is set to 0, as in the
    authors' code. Memory does not grow. Batch-norm statistics are not penalised. If ``select="val-robust"``,
    ω covers the whole stage, but Δ is that of the epoch kept. The default c is from the digits' validation
    split (fgsm,pgd and pgd,pgd-l2, one seed), where 10, 30 and 100 did equally well; the paper uses 0.1 to 1
    for its tasks.

    Args:
        model: the classifier.
        strength: c.
        damping: ξ; 0.1 for the paper's permuted MNIST.
        seed: determines every random draw.

    Raises:
        InputError: c is negative, ξ is not above 0, or one of them is not finite.
    """

    info = DefenseInfo(name="si", paper="1703.04200", regimes=("continual",))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self, model: nn.Module, *, strength: float = 10.0, damping: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(strength=strength)
        above_zero(damping=damping)
        self.strength, self.damping = strength, damping
        self._omega: Weights = {}
        self._start: Weights = {}
        self._path: Weights = {}
        self._slope: Weights = {}
        """∂CE/∂θ of the batches so far that share the next change of θ."""

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """The damping without a penalty; both parameters where there is one stage."""
        found = {} if self.strength else because("since strength=0 leaves out the penalty", "damping")
        return {**found, **single_stage(stages, "strength", "damping")}

    def begin(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Set θ* to the current θ, and start the path integral."""
        self._start = copied(trained(self.model))
        self._path = {name: torch.zeros_like(value) for name, value in self._start.items()}
        self._omega = placed(self._omega, self.device)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``penalty`` (the sum, without c)."""
        ce = self.label_loss(self(self.craft(stage.attacks[0], x, y)), y)
        if not self._omega:
            return {"loss": ce, "ce": ce}
        penalty = pull(self.model, self._omega, self._start)
        return {"loss": ce + self.strength * penalty, "ce": ce, "penalty": penalty}

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Loss, backward pass, optimizer step; ω grows by −g · (θ after − θ before)."""
        if optimizer is None:
            return super().step(x, y, stage, optimizer)
        with self.precision(stage.plan):
            terms = self.loss(x, y, stage)
        optimizer.zero_grad(set_to_none=True)
        terms["ce"].backward()  # type: ignore[no-untyped-call]
        theta = trained(self.model)
        gradient = {name: value.grad.clone() for name, value in theta.items() if value.grad is not None}
        if "penalty" in terms:
            (self.strength * terms["penalty"]).backward()  # type: ignore[no-untyped-call]
        self.clip_gradients(optimizer, stage.plan)
        before = copied(theta)
        share, moves = next_step(optimizer)
        optimizer.step()
        for name, g in gradient.items():
            self._slope[name] = self._slope[name] + share * g if name in self._slope else share * g
        if moves:
            slopes = step_mean(list(self._slope.values()))
            for name, g in zip(self._slope, slopes, strict=True):
                self._path[name] -= g * (theta[name].detach() - before[name])
            self._slope = {}
        return {name: float(value.detach()) for name, value in terms.items()}

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Add the stage's path integral to Ω, and discard it."""
        omega: Weights = {}
        for name, now in trained(self.model).items():
            moved = now.detach() - self._start[name]
            gained = self._path[name] / (moved.square() + self.damping)
            omega[name] = (self._omega[name] + gained if name in self._omega else gained).clamp_min(0)
        self._omega, self._start, self._path = omega, {}, {}

    def training_state(self) -> dict[str, Any]:
        """Adds Ω and, during a stage, θ* and ω."""
        more = {"omega": dict(self._omega), "start": dict(self._start), "path": dict(self._path)}
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores Ω, θ* and ω."""
        super().load_training_state(state)
        self._omega = placed(state["omega"], self.device)
        self._start = placed(state["start"], self.device)
        self._path = placed(state["path"], self.device)
