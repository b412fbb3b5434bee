"""TRADES: the clean error and the boundary error, traded off."""

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

    The inner maximum is searched by steps from x + 0.001·N(0, I), since the divergence is flat at x. Of the
    stage's attack only norm (linf or l2), eps and, unless ``steps`` is given, the number of steps are taken:
    one where it has none, as FGSM, which costs what FGSM does and finds little. A step is 2.5·eps/steps long.
    f(x) and f(x̃) are two train-mode forwards and both get a gradient, as in the authors' code; for l2 that
    code searches by Adam, here the same ascent serves both norms. A joint batch is split over the attacks.

    Args:
        model: the classifier.
        beta: β, the paper's 1/λ; 6 is its choice for CIFAR-10.
        steps: of the search, at every stage; the paper has 10 for CIFAR-10. None takes the stage's.
        seed: determines every draw.

    Raises:
        InputError: β that is negative or not finite; less than one step.
    """

    info = DefenseInfo(name="trades", paper="1901.08573", regimes=("continual", "joint"))

    def __init__(
        self, model: nn.Module, *, beta: float = 6.0, steps: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(beta=beta)
        at_least_one(steps=steps)
        self.beta = beta
        self.steps = steps

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
        """The loss of points that are crafted already."""
        clean, adv = self(x), self(x_adv)
        ce = F.cross_entropy(clean, y)
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
            """KL(f(x) ‖ f(x')) of each point."""
            found = log_probabilities(logits.float())
            return F.kl_div(found, clean[rows], log_target=True, reduction="none").sum(1)

        return ascend(self, attack, x, y, steps=self.steps, objective=divergence)
