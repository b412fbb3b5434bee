"""MART: adversarial training that emphasises misclassified examples."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from attacks_pool.losses import log_probabilities
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.ball import OwnSearchDefense, ascend
from defenses.parts.checks import at_least_one, not_negative
from defenses.parts.mixing import craft_batch
from defenses.registry import register


@register
class MART(OwnSearchDefense):
    """Misclassification-aware adversarial training (Wang et al., ICLR 2020, OpenReview rklOg6EFwS).

        L = BCE(f(x̃), y) + λ · KL(f(x) ‖ f(x̃)) · (1 − p_y(x)),   p = softmax f,
        BCE(f(x̃), y) = −log p_y(x̃) − log(1 − max_{k≠y} p_k(x̃)),

    averaged over the batch. x̃ maximises CE(f(x'), y) over the ball around x by steps from x + 0.001·N(0, I),
    as in the authors' code. The stage's attack determines only norm (linf or l2), eps and, unless ``steps``
    is given, the number of steps, which is one for attacks without that knob, such as FGSM. A step has length
    2.5·eps/steps, the paper's quarter of eps at its 10 steps. f(x) and f(x̃) are two train-mode forward
    passes and both get a gradient. log(1 − p) is computed exactly, while the authors' code adds small
    constants. A joint batch is split over the attacks.

    Args:
        model: the classifier.
        weight: λ; 5 is the paper's choice for CIFAR-10.
        steps: number of search steps in every stage; 10 in the paper. None uses the attack's number.
        seed: determines every random draw.

    Raises:
        InputError: λ is negative or not finite, or ``steps`` is below 1.
    """

    info = DefenseInfo(name="mart", paper=None, regimes=("continual", "joint"))

    def __init__(
        self, model: nn.Module, *, weight: float = 5.0, steps: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        not_negative(weight=weight)
        at_least_one(steps=steps)
        self.weight = weight
        self.steps = steps

    def knobs_in_use(self) -> tuple[str, ...] | None:
        """``eps``, and ``steps`` unless the defense has its own number of them."""
        return ("eps", "steps") if self.steps is None else ("eps",)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The loss above and its terms, ``bce`` and ``kl`` (with the factor 1 − p_y), without λ."""
        x_adv, _ = craft_batch(
            partial(ascend, self, steps=self.steps),
            stage.attacks,
            x,
            y,
            mix="split",
            generator=self.generator,
            predict=self,
        )
        return self.aware(x, x_adv, y)

    def aware(self, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss for adversarial points that are already crafted."""
        clean, adv = log_probabilities(self(x)), log_probabilities(self(x_adv))
        bce = boosted(adv, y).mean()
        divergence = F.kl_div(adv, clean, log_target=True, reduction="none").sum(1)
        doubt = 1 - clean.exp().gather(1, y[:, None]).squeeze(1)
        kl = (divergence * doubt).mean()
        return {"loss": bce + self.weight * kl, "bce": bce, "kl": kl}


def boosted(log_p: Tensor, y: Tensor) -> Tensor:
    """−log p_y − log(1 − max_{k≠y} p_k) for each row of log-probabilities (N, K), without cancellation."""
    true = log_p.gather(1, y[:, None]).squeeze(1)
    rival = log_p.scatter(1, y[:, None], -float("inf")).argmax(1, keepdim=True)
    # 1 − p_k is the sum of the other probabilities.
    rest = log_p.scatter(1, rival, -float("inf")).logsumexp(1)
    return -true - rest
