"""AWP: adversarial training at adversarially perturbed weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import buffers_kept
from attacks_pool.errors import InputError
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import at_least_one, because, not_negative, nothing_to_mix
from defenses.parts.mixing import Mix, craft_batch
from defenses.registry import register
from defenses.training.processes import mean

SMALLEST = 1e-20
"""Added to lengths of gradients, as in the authors' code."""


@register
class AWP(Defense):
    """Adversarial weight perturbation (Wu, Xia and Wang, arXiv:2004.05884) of adversarial training.

        min_w max_{v ∈ V} CE(f_{w+v}(x̃), y),    V = {v : ‖v_l‖ ≤ γ ‖w_l‖ for every layer l}.

    x̃ is crafted on f_w. Then v is found by ``steps`` steps of gradient ascent,
    v_l ← Π(v_l + γ/steps · ‖w_l‖ · g_l / ‖g_l‖), with g = ∇_v CE(f_{w+v}(x̃), y) and Π the projection to V.
    The optimizer steps from w with the gradient at w + v. This seeks weights with a flat loss around them.
    All weights with two dimensions or more are perturbed, so biases and batch norm are not; batch-norm
    statistics are those of the forward pass at w + v.

    From the paper and its code: the layers, γ = 0.01 for adversarial training, one step, and a warm-up
    without perturbation. A joint batch is split over the attacks. Each step of v costs one more forward and
    backward pass.

    Args:
        model: the classifier.
        gamma: γ, the size of the perturbation relative to the weights of a layer; 0 is adversarial training.
        steps: the number of ascent steps.
        warmup_share: the share of each stage's epochs before the first perturbation.
        mix: how a joint batch combines attacks.
        seed: determines every random draw.

    Raises:
        InputError: γ is negative or not finite, ``steps`` is below 1, or ``warmup_share`` is not from 0 to 1.
    """

    info = DefenseInfo(name="awp", paper="2004.05884", regimes=("continual", "joint"))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        gamma: float = 0.01,
        steps: int = 1,
        warmup_share: float = 0.0,
        mix: Mix = "split",
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(gamma=gamma)
        at_least_one(steps=steps)
        if not 0 <= warmup_share <= 1:
            raise InputError(f"warmup_share={warmup_share} must be from 0 to 1")
        self.gamma, self.steps, self.warmup_share, self.mix = gamma, steps, warmup_share, mix

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """``mix`` where no stage has several attacks; the perturbation's parameters with γ = 0."""
        still = (
            {} if self.gamma else because("since nothing is perturbed with gamma=0", "steps", "warmup_share")
        )
        return {**nothing_to_mix(stages), **still}

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Craft, perturb the weights, compute the gradient there, restore the weights and step."""
        with self.precision(stage.plan):
            x_adv, labels = craft_batch(
                self.craft, stage.attacks, x, y, mix=self.mix, generator=self.generator, predict=self
            )
        layers = [] if optimizer is None or stage.done < self.warmup_share else self.layers()
        before = [weight.detach().clone() for weight in layers]
        with self.precision(stage.plan):
            if layers and self.gamma > 0:
                self.perturb(layers, before, x_adv, labels)
            loss = self.label_loss(self(x_adv), labels)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for weight, old in zip(layers, before, strict=True):
                    weight.copy_(old)
            self.clip_gradients(optimizer, stage.plan)
            optimizer.step()
        return {"loss": float(loss.detach())}

    def layers(self) -> list[nn.Parameter]:
        """The trained weights with at least two dimensions."""
        return [weight for weight in self.model.parameters() if weight.requires_grad and weight.dim() > 1]

    def perturb(
        self, layers: list[nn.Parameter], before: list[Tensor], x_adv: Tensor, labels: Tensor
    ) -> None:
        """Add v to the weights; batch-norm statistics stay as they are.

        Args:
            layers: the weights to change.
            before: copies of them, w.
            x_adv: x̃ (N, C, H, W).
            labels: their labels (N,).
        """
        for _ in range(self.steps):
            with buffers_kept(self):
                loss = self.label_loss(self(x_adv), labels)
                gradients = torch.autograd.grad(loss, layers, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for weight, old, slope in zip(layers, before, mean(gradients), strict=True):
                    radius = self.gamma * old.norm()
                    v = weight - old + radius / self.steps * slope / (slope.norm() + SMALLEST)
                    weight.copy_(old + v * (radius / (v.norm() + SMALLEST)).clamp_max(1))
