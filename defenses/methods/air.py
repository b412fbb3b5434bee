"""AIR: continual adversarial defense without stored data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import draw_seed, drawn_for, normal
from attacks_pool.errors import InputError, unknown
from attacks_pool.losses import log_probabilities
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import because, single_stage
from defenses.parts.frozen import OldModelDefense
from defenses.registry import register
from defenses.training.processes import whole

Distance = Literal["mse", "kl"]


@register
class AIR(OldModelDefense):
    """Anisotropic and isotropic replay (Zhou and Hua, arXiv:2404.01828).

    Stage 1 is adversarial training. Later stages use f_old, a frozen copy from the end of the previous stage:

        L = CE(f(x̃), y) + λ_I · KL(f_old(x_iso) ‖ f(x_iso)) + λ_A · KL(f_old(x_mix) ‖ f(x_mix))
            + λ_R · D(f(x̃), f(x_iso)).

    x̃ is crafted on f by the stage's attack. x_iso = clip(x̃ + σ·N(0, I)) is isotropic replay, which breaks
    the attack's pattern. x_mix = β·x̃_i + (1 − β)·x̃_j is anisotropic replay, β ~ Beta(b, b), j a shuffle of
    the batch. x̃, x_iso and x_mix share one train-mode forward pass; f_old runs in eval mode.

    Choices that the paper leaves open: β is drawn per sample; D is by default the mean over the batch of
    ‖softmax f(x̃) − softmax f(x_iso)‖², with gradients to both sides; both KLs have temperature 1; a term
    whose λ is 0 is not computed. The default weights and σ were chosen on the digits' validation split.

    Args:
        model: the classifier.
        lambda_i: λ_I, weight of isotropic replay.
        lambda_a: λ_A, weight of anisotropic replay.
        lambda_r: λ_R, weight of the regulariser D.
        sigma: σ, standard deviation of the isotropic noise in image units.
        beta: b, concentration of the mixing weights; 1 is uniform.
        distance: D, ``mse`` of softmax outputs or ``kl`` of f(x̃) from f(x_iso).
        seed: determines every random draw.

    Raises:
        InputError: a weight or σ is negative, b is not above 0, or one of them is not finite.
    """

    info = DefenseInfo(name="air", paper="2404.01828", regimes=("continual",))
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lambda_i: float = 2.0,
        lambda_a: float = 2.0,
        lambda_r: float = 1.0,
        sigma: float = 0.1,
        beta: float = 1.0,
        distance: Distance = "mse",
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        for name, value in {
            "lambda_i": lambda_i,
            "lambda_a": lambda_a,
            "lambda_r": lambda_r,
            "sigma": sigma,
        }.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value} must be at least 0 and finite")
        if not (math.isfinite(beta) and beta > 0):
            raise InputError(f"beta={beta} must be above 0 and finite")
        if distance not in get_args(Distance):
            raise unknown("distance", distance, get_args(Distance))
        self.lambda_i, self.lambda_a, self.lambda_r = lambda_i, lambda_a, lambda_r
        self.sigma, self.beta, self.distance = sigma, beta, distance

    def begin(self, stage: Stage) -> None:
        """Freeze f_old: a copy of f after the previous stage.

        Raises:
            InputError: the stage has no attack.
        """
        if not stage.attacks:
            raise InputError("air needs an attack to train against")
        super().begin(stage)

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:
        """Parameters of terms whose weight is 0; all of them where there is one stage."""
        terms = ("lambda_i", "lambda_a", "lambda_r")
        found = single_stage(stages, *terms, "sigma", "beta", "distance")
        if self.lambda_i == self.lambda_r == 0:
            found |= because("since lambda_i=0 and lambda_r=0 leave out isotropic replay", "sigma")
        if self.lambda_a == 0:
            found |= because("since lambda_a=0 leaves out anisotropic replay", "beta")
        if self.lambda_r == 0:
            found |= because("since lambda_r=0 leaves out the regulariser", "distance")
        return found

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, which do not include their weights."""
        (attack,) = stage.attacks
        x_adv = self.craft(attack, x, y)
        if not self._old:
            return {"loss": self.label_loss(self(x_adv), y)}
        x_iso, x_mix = self.isotropic(x_adv), self.anisotropic(x_adv)
        return self.replay_loss(x_adv, x_iso, x_mix, y)

    def isotropic(self, x_adv: Tensor) -> Tensor:
        """x_iso = clip(x̃ + σ·N(0, I)), with the shape of ``x_adv``."""
        return (x_adv + self.sigma * normal(x_adv, self.generator)).clamp(0, 1)

    def anisotropic(self, x_adv: Tensor) -> Tensor:
        """x_mix = β·x̃_i + (1 − β)·x̃_j, with the shape of ``x_adv``."""
        total, mine = drawn_for(self.generator, x_adv)
        draws = np.random.default_rng(draw_seed(self.generator)).beta(self.beta, self.beta, total)
        weight = torch.as_tensor(draws, dtype=x_adv.dtype, device=x_adv.device)[mine].view(-1, 1, 1, 1)
        partner = torch.randperm(total, generator=self.generator).to(x_adv.device)[mine]
        return weight * x_adv + (1 - weight) * whole(x_adv)[partner]

    def replay_loss(self, x_adv: Tensor, x_iso: Tensor, x_mix: Tensor, y: Tensor) -> dict[str, Tensor]:
        """L on given points (N, C, H, W); terms whose weight is 0 are not computed."""
        parts = {"adv": x_adv}
        if self.lambda_i > 0 or self.lambda_r > 0:
            parts["iso"] = x_iso
        if self.lambda_a > 0:
            parts["mix"] = x_mix
        logits = dict(zip(parts, self(torch.cat(list(parts.values()))).chunk(len(parts)), strict=True))
        terms = {"ce": self.label_loss(logits["adv"], y)}
        if self.lambda_i > 0:
            terms["isotropic"] = self.divergence_from_old(x_iso, logits["iso"])
        if self.lambda_a > 0:
            terms["anisotropic"] = self.divergence_from_old(x_mix, logits["mix"])
        if self.lambda_r > 0:
            terms["regulariser"] = self._distance(logits["adv"], logits["iso"])
        weights = {"isotropic": self.lambda_i, "anisotropic": self.lambda_a, "regulariser": self.lambda_r}
        loss = terms["ce"]
        for name, weight in weights.items():
            if name in terms:
                loss = loss + weight * terms[name]
        return {"loss": loss, **terms}

    def _distance(self, new: Tensor, replayed: Tensor) -> Tensor:
        if self.distance == "mse":
            return (new.softmax(1) - replayed.softmax(1)).square().sum(1).mean()
        return F.kl_div(
            log_probabilities(replayed), log_probabilities(new), log_target=True, reduction="batchmean"
        )
