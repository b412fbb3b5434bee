"""SIMA: a robust classifier answers attacked images, judges its answers, and learns from its preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.randomness import drawn, normal
from attacks_pool.errors import InputError, unknown
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.checks import above_zero, because, not_negative
from defenses.parts.frozen import OldModelDefense, frozen_copy
from defenses.parts.halves import enter_part, forget_steps
from defenses.parts.mixing import craft_batch
from defenses.registry import register
from defenses.training.processes import current, whole
from defenses.training.tally import Report, Tally

Critic = Literal["all", "no-object", "no-attribute", "no-relation"]
RATIOS = {
    "pair_share": ("pairs", "images"),
    "critic_accuracy": ("chosen_right", "pairs"),
    "criteria_agreement": ("agreed", "pairs"),
    "mean_delta": ("delta", "pairs"),
    "delta_above_zero": ("preferred", "pairs"),
}


@register
class SIMA(OldModelDefense):
    """Self-improvement by preference (Wang et al., arXiv:2405.15973), for classifiers under attack.

    In stage 1, adversarial training on CE(f(x̃), y) takes the share ``sft`` of the epochs; then π_ref is a
    frozen copy of f. In later stages, π_ref is f at the end of the previous stage. With z = f(x̃) and
    x̃ crafted on f, each image gets M candidate answers, scores for them, and a pair of chosen and rejected
    answers, and f is trained by direct preference optimisation (DPO):

        C_i = {argmax z_i} ∪ {M − 1 draws from softmax(z_i / T)},
        score(a) = o(a) + ½ · (t(a) + r(a)),
        o(a) = 1[a = y],   t(a) = π_ref(a | x),   r(a) = mean over V of π_ref(a | clip(x + σ·N(0, I))),
        w, l = the best and the worst answer of C_i;   no pair where they are one,
        δ_i = (z_w − z_l) − (z^ref_w − z^ref_l),
        L = 1/N Σ_i 1[pair] · (−log σ(β δ_i)) + λ · CE(z, y).

    The normalisers of the softmax cancel in δ. From the paper: greedy and sampled answers, a self-critic with
    three visual metrics (object, attribute, relation) whose prompt contains the truth, and DPO with β = 0.1
    and without CE (λ = 0). Ours: the three metrics' analogues for classifiers, their weights, the noisy views
    of the clean image, the CE term and its weight, and that a joint stage is split over the attacks. Each of
    the two parts of stage 1 has a whole learning-rate schedule.

    ``report`` gives the share of images with a pair, the critic's accuracy (the share of pairs whose chosen
    answer is right), the share of pairs whose chosen answer is the best by every criterion alone, the mean of
    δ, and the share of pairs with δ > 0.

    Args:
        model: the classifier.
        beta: β.
        weight: λ, the weight of CE in the preference part; 0 is the paper's loss.
        answers: M, the number of candidates.
        temperature: T of the drawn candidates.
        views: V, the number of noisy views for the relation criterion.
        sigma: σ, the standard deviation of a view's noise in image units.
        sft: share of stage 1 that is adversarial training.
        critic: ``all`` criteria, or all but one.
        truth: False drops the object criterion, the only one that uses labels.
        seed: determines every random draw.

    Raises:
        InputError: a parameter is out of range.
    """

    info = DefenseInfo(name="sima", paper="2405.15973", regimes=("continual", "joint"))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float = 1.0,
        weight: float = 1.0,
        answers: int = 4,
        temperature: float = 1.0,
        views: int = 4,
        sigma: float = 0.1,
        sft: float = 0.5,
        critic: Critic = "all",
        truth: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        above_zero(beta=beta, temperature=temperature)
        not_negative(weight=weight, sigma=sigma)
        for name, value, least in (("answers", answers, 2), ("views", views, 1)):
            if value < least:
                raise InputError(f"{name}={value} must be at least {least}")
        if not 0 < sft < 1:
            raise InputError(f"sft={sft} must be above 0 and below 1")
        if critic not in get_args(Critic):
            raise unknown("critic", critic, get_args(Critic))
        self.beta, self.weight, self.answers, self.temperature = beta, weight, answers, temperature
        self.views, self.sigma, self.sft, self.critic, self.truth = views, sigma, sft, critic, truth
        self._tally = Tally()
        self._counts: dict[str, float] = {}

    def begin(self, stage: Stage) -> None:
        """Freeze π_ref, from the second stage on."""
        super().begin(stage)

    def idle(self, stages: Sequence[Sequence[Attack]]) -> dict[str, str]:  # noqa: ARG002 - the same for all
        """Parameters of a criterion that is left out."""
        found = {}
        if self.critic == "no-relation":
            found = because("since critic=no-relation leaves out the noisy views", "views", "sigma")
        if self.critic == "no-object":
            found = because("since critic=no-object already leaves out the truth", "truth")
        return found

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Train on one batch; freeze π_ref at the border of stage 1."""
        if stage.index == 1:
            if stage.done >= self.sft and not self._old:
                self._old = (frozen_copy(self.model),)
                forget_steps(optimizer)
            borders = (self.sft, 1.0) if self._old else (0.0, self.sft)
            enter_part(optimizer, stage.plan, stage.done, *borders)
        self._counts = {}
        losses = super().step(x, y, stage, optimizer)
        if optimizer is not None and self._counts:
            self._tally.add(stage.index, self._counts)
        return losses

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """CE in the first part of stage 1, then the loss above and its terms without their weights."""
        x_adv, _ = craft_batch(
            self.craft, stage.attacks, x, y, mix="split", generator=self.generator, predict=self
        )
        logits = self(x_adv)
        if not self._old:
            return {"loss": self.label_loss(logits, y)}
        candidates = self.candidates(logits)
        chosen, rejected = self.judged(candidates, self.criteria(x, y))
        reference = self._reference(x_adv).to(logits.dtype)
        return self.preference_loss(logits, reference, chosen, rejected, y)

    def candidates(self, logits: Tensor) -> Tensor:
        """C (N, M): the predicted class of logits (N, K), then M − 1 draws from softmax(logits / T)."""
        found = logits.detach().double()
        draws = drawn(torch.rand, (len(found), self.answers - 1), self.generator).to(found)
        reached = (found / self.temperature).softmax(1).cumsum(1)
        # The first class whose cumulated probability exceeds the draw; the last may round to below 1.
        sampled = torch.searchsorted(reached, draws, right=True).clamp_max(found.shape[1] - 1)
        return torch.cat([found.argmax(1, keepdim=True), sampled], 1)

    def criteria(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """o, t and r of every class, each (N, K), for clean images (N, C, H, W); only those in use."""
        with torch.no_grad():
            certain = self._reference(x).double().softmax(1)
            found = {"object": F.one_hot(y, certain.shape[1]).to(certain), "attribute": certain}
            if self.critic != "no-relation":
                views = [x + self.sigma * normal(x, self.generator) for _ in range(self.views)]
                answers = [self._reference(view.clamp(0, 1)).double().softmax(1) for view in views]
                found["relation"] = torch.stack(answers).mean(0)
        if not self.truth:
            del found["object"]
        found.pop(self.critic.removeprefix("no-"), None)
        return found

    def judged(self, candidates: Tensor, criteria: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The best and the worst candidate (N,) of each image; the first of equal ones.

        Args:
            candidates: C (N, M).
            criteria: values (N, K) of each class.
        """
        rated = {name: values.gather(1, candidates) for name, values in criteria.items()}
        scores = sum((1.0 if name == "object" else 0.5) * values for name, values in rated.items())
        assert isinstance(scores, Tensor)
        best, worst = scores.argmax(1, keepdim=True), scores.argmin(1, keepdim=True)
        chosen, rejected = candidates.gather(1, best).squeeze(1), candidates.gather(1, worst).squeeze(1)
        agreed = torch.stack([one.gather(1, best).squeeze(1) >= one.amax(1) for one in rated.values()])
        self._count(["agreed"], [agreed.all(0) & (chosen != rejected)])
        return chosen, rejected

    def preference_loss(
        self, logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        """L for logits z and z^ref (N, K), answers w and l (N,) and labels (N,), and its two terms."""
        pair = chosen != rejected
        delta = gap(logits, chosen, rejected) - gap(reference, chosen, rejected)
        # −log σ(v) = softplus(−v).
        preference = (F.softplus(-self.beta * delta) * pair).mean()
        terms = {"loss": preference, "preference": preference}
        if self.weight > 0:
            terms["ce"] = self.label_loss(logits, y)
            terms["loss"] = preference + self.weight * terms["ce"]
        marks = [pair, pair & (chosen == y), delta.detach() * pair, pair & (delta > 0)]
        self._count(["pairs", "chosen_right", "delta", "preferred"], marks)
        self._counts["images"] = current(len(y)).total
        return terms

    def _count(self, names: Sequence[str], rows: Sequence[Tensor]) -> None:
        """Count values (N,) of the images, over the whole batch if other processes have other rows of it."""
        totals = whole(torch.stack([row.double() for row in rows], 1)).sum(0).tolist()
        self._counts |= dict(zip(names, totals, strict=True))

    def report(self) -> Report:
        """Shares and means over all preference training, and the same by stage."""
        table = self._tally.by_stage(RATIOS)
        return {**self._tally.ratios(RATIOS), "preferences_by_stage": table} if table else {}

    def training_state(self) -> dict[str, Any]:
        """Adds the sums for ``report``."""
        return {**super().training_state(), "tally": self._tally.state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores the sums for ``report``."""
        super().load_training_state(state)
        self._tally.load(state["tally"])

    def _reference(self, x: Tensor) -> Tensor:
        """z^ref (N, K) of images, without gradients."""
        with torch.no_grad():
            found: Tensor = self._old[0](x)
        self.passes.forwards += len(x)
        return found


def gap(logits: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """z_w − z_l (N,) of logits (N, K), in float32 or better."""
    found = logits if logits.dtype == torch.float64 else logits.float()
    return (found.gather(1, chosen[:, None]) - found.gather(1, rejected[:, None])).squeeze(1)
