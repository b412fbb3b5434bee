"""TRADES: trades clean error off against boundary error."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import evaluation_mode
from attacks_pool.losses import log_probabilities
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.ball import OwnSearchDefense, ascend
from defenses.parts.checks import at_least_one, not_negative
from defenses.parts.mixing import craft_batch
from defenses.registry import register


@register
class TRADES(OwnSearchDefense):
    """Trade-off between clean and boundary error (Zhang et al., arXiv:1901.08573).

        L = CE(f(x), y) + β · KL(f(x) ‖ f(x̃)),   x̃ = argmax KL(f(x) ‖ f(x')) over the ball around x

    The search starts from x + 0.001·N(0, I), since the divergence has zero gradient at x. The stage's attack
    determines only norm (linf or l2), eps and, unless ``steps`` is given, the number of steps: one for
    attacks without that knob, such as FGSM, which is cheap but weak. Steps are 2.5·eps/steps long. f(x) and
    f(x̃) are two train-mode forward passes, and both get a gradient. The authors' code makes three, f(x) for
    each term, so that batch-norm statistics see x twice. For l2 its steps are 2·eps/steps long, and scale the
    gradient to length 1; here both norms use the same ascent. A joint batch is split over the attacks.

    Args:
        model: the classifier.
        beta: β, the paper's 1/λ; 6 is its choice for CIFAR-10.
        steps: number of search steps in every stage; 10 in the paper for CIFAR-10. None uses the attack's.
        seed: determines every random draw.

    Raises:
        InputError: β is negative or not finite, or ``steps`` is below 1.
    """

    info = DefenseInfo(name="trades", paper="1901.08573", regimes=("continual", "joint"))
    smooths_labels = True

    def __init__(
        self, model: nn.Module, *, beta: float = 6.0, steps: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(beta=beta)
        at_least_one(steps=steps)
        self.beta = beta
        self.steps = steps

    def knobs_in_use(self) -> tuple[str, ...] | None:
        """``eps``, and ``steps`` unless the defense has its own number of them."""
        return ("eps", "steps") if self.steps is None else ("eps",)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``ce`` and ``kl``, without β."""
        x_adv, _ = craft_batch(
            self.inner_maximum,
            stage.attacks,
            x,
            y,
            mix="split",
            generator=self.generator,
            predict=self,
        )
        return self.trade_off(x, x_adv, y)

    def trade_off(self, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss for adversarial points that are already crafted."""
        clean, adv = self(x), self(x_adv)
        ce = self.label_loss(clean, y)
        kl = F.kl_div(
            log_probabilities(adv), log_probabilities(clean), log_target=True, reduction="batchmean"
        )
        return {"loss": ce + self.beta * kl, "ce": ce, "kl": kl}

    def inner_maximum(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """x̃ (N, C, H, W) in the ball of ``attack``; labels are not used."""
        if not len(x):
            return x.clone()
        with torch.no_grad(), evaluation_mode(self):
            clean = log_probabilities(self(x))

        def divergence(logits: Tensor, rows: Tensor) -> Tensor:
            """KL(f(x) ‖ f(x')) for each point."""
            found = log_probabilities(logits.float())
            return F.kl_div(found, clean[rows], log_target=True, reduction="none").sum(1)

        return ascend(self, attack, x, y, steps=self.steps, objective=divergence)
