"""EWC: elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import count_passes, evaluation_mode
from attacks_pool.calling.randomness import draw_seed, isolated_randomness
from attacks_pool.errors import InputError
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import at_least_one, because, not_negative, single_stage
from defenses.parts.consolidation import Weights, copied, placed, pull, trained
from defenses.registry import register
from defenses.training.stage import once_more


@register
class EWC(Defense):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv:1612.00796) of adversarial training.

    Stage 1 is adversarial training. Later stages, with θ* the weights at the end of the previous stage, use

        L = CE(f(x̃), y) + λ/2 · Σ_i Ω_i (θ_i − θ*_i)².

    The end of a stage measures the diagonal Fisher information of f on its adversarial examples, F_i =
    E_x̃ E_{y ~ softmax f(x̃)} [(∂ log p_y(x̃) / ∂θ_i)²], with x̃ crafted on the trained f in eval mode, one
    label drawn and one gradient computed per sample; then Ω ← γ·(Ω + F). This is the online form of
    arXiv:1801.10112, whose memory does not grow. With ``online=False`` each stage keeps its own F and θ*, and
    the penalty is their sum, as in the first paper; memory then grows by two models per stage.

    Choices that the papers leave open: labels are drawn from the model, not taken from the data (that would
    be the empirical Fisher information); F is not normalised; batch-norm statistics are not penalised. The
    Fisher information is measured on at most ``fisher_samples`` points in another pass over the stage's data.
    The default λ is the best of five powers of ten on the digits' validation split (``docs/tuning.md``).

    Args:
        model: the classifier.
        strength: λ.
        gamma: γ, the share of importance that remains after a further stage; only the online form uses it.
        online: one running Ω (default), or one F per stage.
        fisher_samples: number of points to average F over.
        seed: determines every random draw.

    Raises:
        InputError: λ is negative or not finite, γ is outside [0, 1], or ``fisher_samples`` is below 1.
    """

    info = DefenseInfo(name="ewc", paper="1612.00796", regimes=("continual",))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 10.0,
        gamma: float = 0.95,
        online: bool = True,
        fisher_samples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(strength=strength)
        if not 0 <= gamma <= 1:
            raise InputError(f"gamma={gamma} must be at least 0 and at most 1")
        at_least_one(fisher_samples=fisher_samples)
        self.strength, self.gamma, self.online, self.fisher_samples = strength, gamma, online, fisher_samples
        self._held: list[tuple[Weights, Weights]] = []
        """Pairs (Ω, θ*): a single one in the online form, otherwise one per stage."""

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """γ without the online form; all parameters where there is one stage or no penalty."""
        others = ("gamma", "online", "fisher_samples")
        found = {} if self.online else because("since only online=true uses it", "gamma")
        if self.strength == 0:
            found |= because("since strength=0 leaves out the penalty", *others)
        return {**found, **single_stage(stages, "strength", *others)}

    def begin(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Move the importances and held weights to the model's device."""
        self._held = [(placed(omega, self.device), placed(at, self.device)) for omega, at in self._held]

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``penalty`` (the sum, without λ/2)."""
        ce = self.label_loss(self(self.craft(stage.attacks[0], x, y)), y)
        if not self._held:
            return {"loss": ce}
        penalty = torch.stack([pull(self.model, omega, at) for omega, at in self._held]).sum()
        return {"loss": ce + self.strength / 2 * penalty, "ce": ce, "penalty": penalty}

    def end(self, stage: Stage) -> None:
        """Measure F and hold the weights to their current values from now on."""
        # Isolated, so that shuffling loaders and random models draw the same numbers after resuming.
        with (
            isolated_randomness(draw_seed(self.generator), self.device),
            evaluation_mode(self),
            count_passes(self) as passes,
        ):
            fisher = self.fisher(stage)
        self.passes.forwards += passes.forwards
        self.passes.backwards += passes.backwards
        now = copied(trained(self.model))
        if not self.online:
            self._held.append((fisher, now))
            return
        before = self._held[0][0] if self._held else {}
        omega = {
            name: self.gamma * (value + before[name] if name in before else value)
            for name, value in fisher.items()
        }
        self._held = [(omega, now)]

    def fisher(self, stage: Stage) -> Weights:
        """F of the current f on adversarial examples of the stage's data."""
        total = {name: torch.zeros_like(value) for name, value in trained(self.model).items()}
        count = 0
        for images, labels in once_more(stage, self.device):
            x, y = images[: self.fisher_samples - count], labels[: self.fisher_samples - count]
            for sample in self.craft(stage.attacks[0], x, y):
                self._add_square(total, sample[None])
            count += len(x)
            if count == self.fisher_samples:
                break
        return {name: value / count for name, value in total.items()}

    def _add_square(self, total: Weights, x: Tensor) -> None:
        """Add (∂ log p_y / ∂θ)² of one sample (1, C, H, W) to ``total``, with y drawn from f(x)."""
        log_p = self(x).log_softmax(1)
        drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=self.generator)
        theta = trained(self.model)
        gradients = torch.autograd.grad(log_p[0, int(drawn)], list(theta.values()), allow_unused=True)
        for name, gradient in zip(theta, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()

    def training_state(self) -> dict[str, Any]:
        """Adds the importances and the weights that they are relative to."""
        return {**super().training_state(), "held": list(self._held)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores the importances and their weights."""
        super().load_training_state(state)
        self._held = [(placed(omega, self.device), placed(at, self.device)) for omega, at in state["held"]]
