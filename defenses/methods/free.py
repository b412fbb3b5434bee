"""Free adversarial training: one backward pass for the weights and the perturbation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks_pool.attack import Attack
from attacks_pool.calling.slopes import usable
from attacks_pool.norms import steepest
from defenses.base import Stage
from defenses.metadata import DefenseInfo
from defenses.parts.ball import Ball, OwnSearchDefense
from defenses.parts.checks import at_least_one
from defenses.registry import register
from defenses.training.processes import current, part_of, whole, working_on

Batch = tuple[Tensor, Tensor]


@register
class Free(OwnSearchDefense):
    """Adversarial training for free (Shafahi et al., arXiv:1904.12843); it replays each batch m times.

        z = clip(x + δ),    g_θ, g_z = ∇_{θ, z} CE(f(z), y)   in one backward pass,
        θ ← the optimizer's step with g_θ,    δ ← Π(δ + eps · sign g_z).

    Π projects onto the ball of the stage's attack, which determines norm (linf or l2) and eps; l2 steps along
    g/‖g‖. δ starts at 0 and continues from batch to batch, as in the paper, and also from stage to stage. The
    paper does not clip to the image range. Its code does, and differentiates through the clip, so that δ of a
    clipped pixel never changes again. This harms images with black backgrounds, so here g_z is the gradient
    at the clipped image.

    Budget: one replay is one training step. With ``epochs`` epochs of B batches it therefore makes as many
    optimizer steps as any other defense, epochs · B, and uses one of every m batches. This corresponds to the
    paper's division of the epochs by m, for any number of epochs. While one batch is replayed, m batches
    arrive; each is equally likely to be the next. A step costs one forward and one backward pass, no more
    than plain training. A joint batch is split over the attacks, by stride.

    Args:
        model: the classifier.
        replays: m; the paper uses 8 for CIFAR-10 and 4 for ImageNet.
        seed: determines every random draw.

    Raises:
        InputError: m is below 1.
    """

    info = DefenseInfo(name="free", paper="1904.12843", regimes=("continual", "joint"))
    smooths_labels = True

    def __init__(self, model: nn.Module, *, replays: int = 4, seed: int = 0) -> None:
        super().__init__(model, seed=seed)
        at_least_one(replays=replays)
        self.replays = replays
        self._delta: Tensor | None = None
        self._points: Tensor | None = None
        self._let_go()

    def _let_go(self) -> None:
        self._held: Batch | None = None
        self._next: Batch | None = None
        self._replayed = 0

    def end(self, stage: Stage) -> None:  # noqa: ARG002 - the same for every stage
        """Release the batches; δ is kept."""
        self._let_go()

    def knobs_in_use(self) -> tuple[str, ...] | None:
        """``eps`` alone."""
        return ("eps",)

    def step(
        self, x: Tensor, y: Tensor, stage: Stage, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, float]:
        """Run one replay: one backward pass provides the gradients for both θ and δ."""
        arrived = current(len(x))
        x, y = self._batch(x, y)
        # Each process holds the whole batch and the whole δ, and computes its own rows of them.
        part = part_of(len(x))
        with working_on(part):
            losses = super().step(x[part.slice], y[part.slice], stage, optimizer)
            points, self._points = self._points, None
            if points is not None and points.grad is not None and self._delta is not None:
                mine = torch.zeros_like(points)
                for share, ball in _shares(stage.attacks, part.start):
                    slope = usable(points.grad[share], points.detach()[share])
                    mine[share] = ball.eps * steepest(slope, ball.norm)
                ahead = torch.zeros_like(self._delta)
                ahead[: len(x)] = whole(mine)
                self._delta = _project(self._delta + ahead, stage.attacks)
        # Losses are weighted by the part of the batch that arrived.
        return {name: value * (part.weight / arrived.weight) for name, value in losses.items()}

    def loss(self, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
        """CE(f(clip(x + δ)), y)."""
        # Projected before use as well, because the ball may have changed since the last step.
        part = current(len(x))
        self._delta = _project(_grown(self._delta, x, part.total), stage.attacks)
        self._points = (x + self._delta[part.slice]).clamp(0, 1).requires_grad_()
        return self.label_loss(self(self._points), y)

    def training_state(self) -> dict[str, Any]:
        """Adds the batch being replayed, the candidate for the next, the number of replays, and δ."""
        more = {"held": self._held, "next": self._next, "delta": self._delta, "replayed": self._replayed}
        return {**super().training_state(), **more}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores them on the defense's device."""
        super().load_training_state(state)
        self._held, self._next = _moved(state["held"], self.device), _moved(state["next"], self.device)
        delta: Tensor | None = state["delta"]
        self._delta = None if delta is None else delta.to(self.device)
        self._replayed = int(state["replayed"])

    def _batch(self, x: Tensor, y: Tensor) -> Batch:
        """Choose the batch to replay, given that batch ``(x, y)`` has arrived."""
        if int(torch.randint(max(self._replayed, 1), (1,), generator=self.generator)) == 0:
            self._next = (whole(x), whole(y))
        if self._held is None or self._replayed == self.replays:
            self._held, self._next, self._replayed = self._next, None, 0
        assert self._held is not None
        self._replayed += 1
        return self._held


def _shares(attacks: Sequence[Attack], start: int = 0) -> Iterator[tuple[slice, Ball]]:
    """For each attack, its rows (by stride) of a batch's rows from ``start`` on, and its ball."""
    for number, attack in enumerate(attacks):
        yield slice((number - start) % len(attacks), None, len(attacks)), Ball.of(attack)


def _project(delta: Tensor, attacks: Sequence[Attack]) -> Tensor:
    """Π(δ)."""
    moved = delta.clone()
    for share, ball in _shares(attacks):
        moved[share] = ball.shrink(delta[share])
    return moved


def _grown(delta: Tensor | None, x: Tensor, size: int) -> Tensor:
    """δ for images like ``x``, extended by zeros if it has fewer than ``size`` rows."""
    have = 0 if delta is None else len(delta)
    if delta is not None and have >= size:
        return delta
    more = x.new_zeros(size - have, *x.shape[1:])
    return more if delta is None else torch.cat([delta, more])


def _moved(batch: Sequence[Tensor] | None, device: torch.device) -> Batch | None:
    return None if batch is None else (batch[0].to(device), batch[1].to(device))
