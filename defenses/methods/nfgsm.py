"""N-FGSM: single-step adversarial training from strongly noisy images."""

from __future__ import annotations

from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import buffers_kept, untouched
from attacks_pool.calling.randomness import normal, uniform
from attacks_pool.losses import cross_entropy
from attacks_pool.norms import l2_norm, steepest
from attacks_pool.search.ascent import input_gradient
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.ball import Ball, OwnSearchDefense
from defenses.parts.checks import above_zero, not_negative
from defenses.parts.mixing import craft_batch
from defenses.registry import register


@register
class NFGSM(OwnSearchDefense):
    """Noise and one signed step (de Jorge et al., arXiv:2202.01181), not projected: L = CE(f(x̃), y).

        x_η = x + η,  η ~ U(−k·eps, k·eps),    x̃ = x_η + α·eps · sign ∇ CE(f(x_η), y).

    Neither the noise nor x̃ is projected onto the ball; the method lets x̃ lie (k + α)·eps away. Both stay in
    the image range [0, 1], as in the authors' code. The gradient is computed in eval mode, like all crafting
    here; the authors use train mode. The stage's attack determines norm and eps. The paper covers linf;
    for l2 the noise has a uniform direction and a length from U(0, k·eps), and the step follows g/‖g‖. A
    joint batch is split over the attacks.

    Args:
        model: the classifier.
        k: size of the noise in multiples of eps; 2 in the paper.
        alpha: α, length of the step in multiples of eps; 1 in the paper.
        seed: determines every random draw.

    Raises:
        InputError: k is negative, α is not above 0, or one of them is not finite.
    """

    info = DefenseInfo(name="n-fgsm", paper="2202.01181", regimes=("continual", "joint"))
    smooths_labels = True

    def __init__(self, model: nn.Module, *, k: float = 2.0, alpha: float = 1.0, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        not_negative(k=k)
        above_zero(alpha=alpha)
        self.k, self.alpha = k, alpha

    def knobs_in_use(self) -> tuple[str, ...] | None:
        """``eps`` alone."""
        return ("eps",)

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f(x̃), y)."""
        x_adv, _ = craft_batch(
            self.noisy_step,
            stage.attacks,
            x,
            y,
            mix="split",
            generator=self.generator,
            predict=self,
        )
        return self.label_loss(self(x_adv), y)

    def noise(self, ball: Ball, x: Tensor) -> Tensor:
        """η, with the shape of ``x``."""
        size = self.k * ball.eps
        if ball.norm == "linf":
            return uniform(x, self.generator, -size, size)
        direction = normal(x, self.generator)
        length = uniform(x[:, :1, :1, :1], self.generator, 0.0, size)
        return direction / l2_norm(direction).clamp_min(1e-12) * length

    def noisy_step(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """x̃ (N, C, H, W)."""
        if not len(x):
            return x.clone()
        ball = Ball.of(attack)
        x_noisy = (x + self.noise(ball, x)).clamp(0, 1)
        with attack.within(), buffers_kept(self), untouched(self), self.searched(x) as model:
            gradient, _, _ = input_gradient(model, x_noisy, y, cross_entropy)
        return (x_noisy + self.alpha * ball.eps * steepest(gradient, ball.norm)).clamp(0, 1)
