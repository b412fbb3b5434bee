"""The ball of a stage's attack, for methods that have a search of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from attacks_pool.attack import Attack
from attacks_pool.calling.guard import buffers_kept, untouched
from attacks_pool.calling.randomness import normal
from attacks_pool.errors import InputError
from attacks_pool.norms import l2_norm, project
from attacks_pool.search.ascent import Objective, Ways, gradient_ascent
from defenses.base import Defense
from defenses.parts.checks import needs_attack

NORMS = ("linf", "l2")
START = 0.001
"""Standard deviation of the noise from which searches start, as in the code of TRADES and of MART."""


@dataclass(frozen=True)
class Ball:
    """Norm, ``eps`` and ``steps`` of an attack; ``steps`` is 1 where the attack has no such knob."""

    norm: str
    eps: float
    steps: int

    @classmethod
    def of(cls, attack: Attack) -> Self:
        """What such a method takes from ``attack``."""
        return cls(str(attack.info.norm), attack.eps, int(attack.knobs.get("steps", 1)))

    def shrink(self, delta: Tensor) -> Tensor:
        """The perturbation (N, C, H, W) brought back into the ball; images are not looked at."""
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        return delta * (self.eps / l2_norm(delta).clamp_min(1e-12)).clamp_max(1.0)


class OwnSearchDefense(Defense):
    """A defense with a search of its own: it takes norm, ``eps`` and ``steps`` from a stage's attack."""

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Refuse a stage whose ball the search does not know.

        Raises:
            InputError: no attack, or one of another norm than ``linf`` and ``l2``.
        """
        super().check_attacks(attacks)
        needs_attack(self.info.name, attacks)
        for attack in attacks:
            if attack.info.norm not in NORMS:
                bound = f"is bounded in {attack.info.norm}" if attack.info.norm else "has no norm"
                raise InputError(
                    f"{self.info.name} cannot train against {attack.name!r}, which {bound}: it has a search "
                    f"of its own, in the attack's norm (allowed: {', '.join(NORMS)})"
                )


def ascend(
    defense: Defense,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    steps: int | None = None,
    objective: Objective | None = None,
) -> Tensor:
    """x_{k+1} = Π(x_k + 2.5·eps/steps · d_k) from x + 0.001·N(0, I), d_k steepest for the objective.

    Norm, eps and, unless given, the number of steps are those of ``attack``; the objective is CE(f(x_k), y)
    unless given. Like ``craft`` it runs in eval mode and moves no batch-norm statistics. Shapes as in
    ``Attack``.
    """
    if not len(x):
        return x.clone()
    ball = Ball.of(attack)
    if steps is not None:
        ball = replace(ball, steps=steps)

    def start(x: Tensor, draws: torch.Generator) -> Tensor:
        return project(x + START * normal(x, draws), x, ball.eps, ball.norm)

    with attack.within(), buffers_kept(defense), untouched(defense), defense.searched(x) as model:
        return gradient_ascent(
            model,
            x,
            y,
            norm=ball.norm,
            eps=ball.eps,
            steps=ball.steps,
            step_size=2.5 * ball.eps / ball.steps,
            generator=defense.generator,
            ways=Ways(objective=objective, start=start),
        )
