"""IBP: training on the worst logits that interval bounds allow, so that robustness can be certified."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.errors import InputError
from defenses.base import Defense, Stage
from defenses.metadata import DefenseInfo
from defenses.parts.ball import check_norms
from defenses.parts.bounded import Bounded
from defenses.parts.checks import above_zero
from defenses.parts.intervals import ball
from defenses.registry import register


@register
class IBP(Defense):
    """Interval bound propagation (Gowal et al., arXiv:1810.12715).

        L = κ · CE(z, y) + (1 − κ) · CE(ẑ, y),   ẑ_y = lower bound of z_y,   ẑ_k = upper bound of z_k

    z = f(x), and the bounds hold for all images in the ball of radius ε around x. Intervals go through the
    network: an affine layer W takes middle μ and radius r to W μ + b and abs(W) r, a monotone activation h
    takes [l, u] to [h(l), h(u)]. The last linear layer is merged with the differences z_k − z_y (elision), so
    that ẑ_k − ẑ_y = (W_k − W_y) μ + abs(W_k − W_y) r + b_k − b_y. Over the share ``warmup_share`` of each
    stage, ε grows linearly from 0 to ``scale`` times the attack's eps, and κ falls linearly from 1 to
    ``kappa``; the plan's own ``eps_warmup`` multiplies eps.

    From the paper: the loss, κ = 1/2, both schedules and elision. It trains against the ball of the stage's
    attack and runs no attack. Ours: an l2 ball is bounded exactly by the first affine layer, and by intervals
    from there; of several attacks, the largest ball of each norm counts, and CE(ẑ, y) is the mean over norms.
    In the bounds, batch norm uses its running statistics and dropout does nothing, as in the finished
    network, whose points ``advbench certify`` proves.

    Args:
        model: the classifier: convolutions, linear layers, batch norm, activations, pooling, additions and
            changes of shape.
        kappa: the final κ, the weight of the loss on clean images.
        warmup_share: the share of each stage over which ε and κ change; 0 has their final values throughout.
        scale: the training radius in multiples of the attack's eps; the paper takes more than 1 for small
            eps.
        seed: determines every random draw.

    Raises:
        InputError: ``kappa`` or ``warmup_share`` is not from 0 to 1, or ``scale`` is not above 0.
    """

    info = DefenseInfo(name="ibp", paper="1810.12715", regimes=("continual", "joint"))
    needs_attack = True
    smooths_labels = True

    def __init__(
        self,
        model: nn.Module,
        *,
        kappa: float = 0.5,
        warmup_share: float = 0.5,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        for name, value in (("kappa", kappa), ("warmup_share", warmup_share)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value} must be from 0 to 1")
        above_zero(scale=scale)
        self.kappa, self.warmup_share, self.scale = kappa, warmup_share, scale
        # A tuple keeps it from being registered; it exists only while a stage trains.
        self._bounded: tuple[Bounded, ...] = ()

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Reject attacks whose ball has no bounds.

        Raises:
            InputError: there is no attack, or one with a norm other than ``linf`` and ``l2``.
        """
        super().check_attacks(attacks)
        check_norms(self.info.name, attacks, "bounds support")

    def check_images(self, x: Tensor) -> None:
        """Reject a classifier without bounds, on images (N, C, H, W).

        Raises:
            InputError: an operation of it has no bounds; the message names it.
        """
        with torch.no_grad():
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
            Bounded(self.model, self.info.name).worst_logits(ball(x, "linf", 0.0), y)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> dict[str, Tensor]:
        """L and its terms without κ, ``ce`` and ``worst``."""
        share = min(stage.done / self.warmup_share, 1.0) if self.warmup_share else 1.0
        kappa = 1 - (1 - self.kappa) * share
        terms = [
            self.label_loss(self.worst_logits(x, y, norm, share * self.scale * eps), y)
            for norm, eps in balls_of(stage.attacks).items()
        ]
        ce, worst = self.label_loss(self(x), y), torch.stack(terms).mean()
        return {"loss": kappa * ce + (1 - kappa) * worst, "ce": ce, "worst": worst}

    def worst_logits(self, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        """ẑ − ẑ_y (N, K) on balls around images ``x`` (N, C, H, W) with labels ``y`` (N,)."""
        if not self._bounded or self._bounded[0].model is not self.model:
            self._bounded = (Bounded(self.model, self.info.name),)
        kind = next((one.dtype for one in self.model.parameters() if one.is_floating_point()), x.dtype)
        # Differences of bounds would be too coarse in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            found = self._bounded[0].worst_logits(ball(x.to(kind), norm, eps), y)
        return found if found.dtype == torch.float64 else found.float()

    def unprepare(self) -> None:
        """Forget the trace of the network too."""
        super().unprepare()
        self._bounded = ()


def balls_of(attacks: Sequence[Attack]) -> dict[str, float]:
    """The largest eps of each norm, in the order of the attacks."""
    found: dict[str, float] = {}
    for attack in attacks:
        norm = str(attack.info.norm)
        found[norm] = max(attack.eps, found.get(norm, 0.0))
    return found
