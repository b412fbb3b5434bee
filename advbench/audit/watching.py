"""Checks that a model answers a search as it answers the judge, by recording logits and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from advbench.audit.consistency import tolerance
from advbench.audit.slope import CLOSE, FURTHEST, NOISE
from advbench.evaluation.shards import blocks
from advbench.evaluation.stochastic import gap
from attacks_pool import verify
from attacks_pool.calling.guard import buffers_kept
from attacks_pool.calling.logits import logits_in
from attacks_pool.calling.randomness import keyed_generator, uniform
from attacks_pool.verifier import exact_arithmetic
from leaderboards import Flag

KEPT = 12
"""How many points of each model call are recorded, drawn anew for each call."""
RISES = (1e-2, 1e-1, 1e-3)
"""Target rises, relative to the size of the logits; a later one is tried only if earlier ones disagree."""
BLIND, CLEAR = 0.1, 50
"""For points without a useful gradient: the step along a random direction, as a share of the longest step,
and by what factor a change must exceed rounding to show a slope."""
LEAST_UPON = 1e-6
"""If no gradient of the loss by a logit exceeds this, the image's gradient may underflow in float32."""
LEAST_AGREEMENT, LEAST_JUDGED = 0.5, 6
"""The share of a call's points whose slopes must agree, and the fewest points for a judgement."""


@dataclass
class Call:
    """Some points of one model call: images, logits, and the loss's gradients with respect to both."""

    x: Tensor
    logits: Tensor
    upon: Tensor | None = None
    gradient: Tensor | None = None


@dataclass
class Watched:
    """Recorded calls of searches on ``model`` at ``place``; ``seed`` draws the points to record."""

    model: nn.Module
    seed: int
    place: torch.device
    calls: list[Call] = field(default_factory=list)

    def __deepcopy__(self, _memo: object) -> Watched:
        # A search may run on a deep copy of the model, including its hook; recordings stay in one place.
        return self

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record every differentiable call of the model within the block, in full float32 like the judge.

        A hook records the calls, so the model sees the same callers as without it. A TorchScript module takes
        no hooks, but it cannot inspect its callers either.
        """
        if isinstance(self.model, torch.jit.ScriptModule):
            yield
            return
        handle = self.model.register_forward_hook(self._record)
        try:
            with exact_arithmetic(self.place):
                yield
        finally:
            handle.remove()

    def _record(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor | None:
        x = given[0] if given else None
        if module is not self.model or not (_differentiable(x) and _differentiable(output)):
            return None
        if not torch.is_grad_enabled() or output.ndim != 2 or len(output) != len(x):
            return None
        order = torch.randperm(len(x), generator=keyed_generator("watched", self.seed, len(self.calls)))
        rows = order[:KEPT].to(x.device)
        call = Call(x.detach()[rows].clone(), output.detach()[rows].clone())
        self.calls.append(call)

        # Some modules, quantised ones for example, pass on no gradient at all.
        def upon(gradient: Tensor | None) -> None:
            call.upon = None if gradient is None else gradient.detach()[rows].clone()

        def back(gradient: Tensor | None) -> None:
            call.gradient = None if gradient is None else gradient.detach()[rows].clone()

        # Hook a view, so that this hook runs before any hooks of the model on its own output.
        shown: Tensor = output.view_as(output)
        shown.register_hook(upon)  # type: ignore[no-untyped-call]
        x.register_hook(back)  # type: ignore[no-untyped-call]
        return shown


def _differentiable(tensor: object) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and tensor.dtype == torch.float32 and tensor.requires_grad


class _Heard(nn.Module):
    """A model wrapper that stores the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.logits = model, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = logits_in(self.model(x), "the model")
        self.logits.append(logits)
        return logits


def told_to_the_judge(model: nn.Module, x: Tensor) -> Tensor:
    """The logits (N, K) of images (N, C, H, W), computed by the judge's own code."""
    heard = _Heard(model)
    with buffers_kept(model):
        for block in blocks(x.shape[1:], len(x)):
            part = x[block]
            nothing = torch.zeros(len(part), dtype=torch.int64, device=x.device)
            verify(heard, part, nothing, part, norm=None, eps=1.0)
    return torch.cat(heard.logits).float()


def watched_flags(watched: Watched) -> Iterator[Flag]:
    """``batch-dependent`` and ``false-gradient``, from the recorded calls of searches.

    A model may inspect its caller: the stack, hooks, the random state. So its logits in a search are compared
    with its logits for the judge on the same image, and the gradient that the search got, in every single
    call, with the slope of the judge's logits.
    """
    calls = [call for call in watched.calls if call.gradient is not None and call.upon is not None]
    if not calls:
        return
    x, seen = torch.cat([call.x for call in calls]), torch.cat([call.logits for call in calls])
    size = gap(seen, told_to_the_judge(watched.model, x))
    if size > tolerance(watched.model):
        message = "for the same images, the model gives attacks other logits than the evaluation"
        sizes = {"asker": min(size, 1e9)}
        yield Flag.of("batch-dependent", message, relative_difference=sizes, points=len(x))
    lengths = [len(call.x) for call in calls]
    found = [[int(part.sum()) for part in torch.split(mask, lengths)] for mask in _slopes(watched, calls)]
    shares = [
        (right / count, number)
        for number, (count, right) in enumerate(zip(*found, strict=True))
        if count >= LEAST_JUDGED and right < LEAST_AGREEMENT * count
    ]
    if shares:
        number = min(shares)[1]
        count, right = (counts[number] for counts in found)
        message = (
            f"in call {number + 1} of {len(calls)}, an attack got a gradient that at {count - right} of "
            f"{count} points is not the slope of the logits that the evaluation gets"
        )
        told = {"calls": len(calls), "wrong_calls": len(shares), "points": count, "agree": right}
        yield Flag.of("false-gradient", message, **told, least_share=LEAST_AGREEMENT)


def _slopes(watched: Watched, calls: Sequence[Call]) -> tuple[Tensor, Tensor]:
    """(N,) which points of all calls can be judged, and for which the gradient is the slope."""
    x = torch.cat([call.x for call in calls])
    upon = torch.cat([call.upon for call in calls if call.upon is not None]).double()
    gradient = torch.cat([call.gradient for call in calls if call.gradient is not None]).double()
    logits = torch.cat([call.logits for call in calls]).double()
    # Points whose logits do not affect the loss have no slope; a tiny gradient underflows on its way back.
    moved = (upon.abs().amax(1) > LEAST_UPON) & torch.isfinite(torch.cat([upon, logits], 1)).all(1)
    size = (upon * logits).abs().amax(1).clamp_min(1e-30)
    # Move only pixels with space on both sides and a finite slope.
    room = (x > 2 * FURTHEST) & (x < 1 - 2 * FURTHEST)
    used = torch.where(room & torch.isfinite(gradient), gradient, 0.0)
    slope, furthest = used.flatten(1).norm(dim=1), FURTHEST * x[0].numel() ** 0.5
    useful = NOISE * size / furthest < CLOSE / 2 * slope
    noise = uniform(x, keyed_generator("blind", watched.seed)).double() - 0.5
    along = torch.where(useful.view(-1, 1, 1, 1), used, torch.where(room, noise, 0.0))
    unit = along / along.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
    reach = (2 * FURTHEST / unit.flatten(1).abs().amax(1).clamp_min(1e-12)).clamp_max(furthest)
    judged, agrees = torch.zeros_like(moved), torch.zeros_like(moved)
    for attempt, rise in enumerate(RISES):
        step = torch.where(useful, torch.minimum(rise * size / slope.clamp_min(1e-300), reach), BLIND * reach)
        asked = (moved & ~agrees & (useful | (attempt == 0))).nonzero().squeeze(1)
        if not len(asked):
            break
        move = step[asked].view(-1, 1, 1, 1) * unit[asked]
        ends = torch.cat([x[asked] + move, x[asked] - move]).to(x.dtype)
        up, down = told_to_the_judge(watched.model, ends).double().chunk(2)
        found = torch.zeros_like(step)
        found[asked] = ((up - down) * upon[asked]).sum(1) / (2 * step[asked])
        rounding = NOISE * size / step
        resolved = torch.zeros_like(moved)
        resolved[asked] = True
        judged |= resolved & torch.where(useful, rounding < CLOSE / 2 * slope, found.abs() > CLEAR * rounding)
        agrees |= judged & useful & ((found - slope).abs() <= CLOSE * slope)
    return judged, agrees
