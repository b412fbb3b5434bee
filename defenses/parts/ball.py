"""The norm ball of a stage's attack, and a base class for defenses with their own inner search."""

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

NORMS = ("linf", "l2")
START = 0.001
"""Standard deviation of the starting noise of searches, as in the code of TRADES and of MART."""


@dataclass(frozen=True)
class Ball:
    """``norm``, ``eps`` and ``steps`` of an attack; ``steps`` is 1 if the attack has no such knob."""

    norm: str
    eps: float
    steps: int

    @classmethod
    def of(cls, attack: Attack) -> Self:
        """Read norm, eps and steps from ``attack``."""
        return cls(str(attack.info.norm), attack.eps, int(attack.knobs.get("steps", 1)))

    def shrink(self, delta: Tensor) -> Tensor:
        """Move the perturbation (N, C, H, W) into the ball; the image range is not considered."""
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        return delta * (self.eps / l2_norm(delta).clamp_min(1e-12)).clamp_max(1.0)


def check_norms(defense: str, attacks: Sequence[Attack], own: str) -> None:
    """Reject attacks whose ball a defense has no search or bounds for; ``own`` says of what it supports some.

    Raises:
        InputError: an attack has a norm other than ``linf`` and ``l2``, or none.
    """
    for attack in attacks:
        if attack.info.norm not in NORMS:
            bound = f"is bounded in {attack.info.norm}" if attack.info.norm else "has no norm"
            raise InputError(
                f"{defense} cannot train against {attack.name!r}, which {bound}: its own {own} only some "
                f"norms (allowed: {', '.join(NORMS)})"
            )


class OwnSearchDefense(Defense):
    """A defense with its own inner search, which uses norm, ``eps`` and ``steps`` of the stage's attack."""

    needs_attack = True

    def check_attacks(self, attacks: Sequence[Attack]) -> None:
        """Reject attacks whose norm the search does not support.

        Raises:
            InputError: there is no attack, or one with a norm other than ``linf`` and ``l2``.
        """
        super().check_attacks(attacks)
        check_norms(self.info.name, attacks, "search supports")


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

    ``attack`` determines norm, eps and, unless given, the number of steps; the default objective is
    CE(f(x_k), y). Like ``craft`` it runs in eval mode and leaves batch-norm statistics unchanged. Shapes as
    in ``Attack``.
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
